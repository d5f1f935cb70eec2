"""Prompts with completions for language models."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Optional

import numpy as np

from haikd.core import registry
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data.text import packing
from haikd.data.text import shards
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import tokens as tokens_lib

_PROMPT, _COMPLETION = 1, 2  # The parts of a row.


class _Completions(NamedTuple):
  """How a prompt and its completion become a row."""

  tokenizer: tokenizer_lib.Tokenizer
  length: int
  prompt: str
  completion: str
  padding: str

  def recipe(self) -> shards.Recipe:
    # None keeps the cache key of earlier versions; the tokenizer's digest is in
    # the key as well.
    options = dict(
        tokenizer=None, length=self.length, prompt=self.prompt,
        completion=self.completion, padding=self.padding)
    return shards.Recipe(
        'completions', options, packing.row_dtype(self.length), self._rows)

  def _rows(self, batches: shards.Batches,
            counts: Counter) -> Iterator[np.ndarray]:
    pad = text_tokenizers.pad_id(self.tokenizer)
    end = text_tokenizers.end_id(self.tokenizer)
    for batch in batches:
      prompts = self.tokenizer.encode_batch(
          text_files.texts_of(batch, self.prompt))
      completions = self.tokenizer.encode_batch(
          text_files.texts_of(batch, self.completion), special=False)
      for prompt, completion in zip(prompts, completions):
        first = prompt.ids
        if len(first) and first[-1] == end:
          first = first[:-1]  # The completion continues the text.
        second = text_tokenizers.append_end(completion.ids, end)
        counts['tokens'] += len(first) + len(second)
        counts['cut'] += len(first) + len(second) > self.length
        second = second[:self.length]
        first = first[max(0, len(first) + len(second) - self.length):]
        yield packing.row(
            [first, second],
            [np.full(len(first), _PROMPT), np.full(len(second), _COMPLETION)],
            self.length, pad=pad, padding=self.padding)

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    tokens, parts = rows['tokens'], rows['parts']
    label, target_mask = tokens_lib.next_token(
        tokens, parts > 0, completion=parts == _COMPLETION)
    return dict(tokens=tokens, mask=parts > 0, label=label,
                target_mask=target_mask)


def _completions_spec(*, tokenizer, length, vocabulary=None, **options):
  del options
  packing.check_options(length, 'right')
  return spec_lib.Spec(
      tokens_lib.columns(length),
      text_tokenizers.vocabulary_size(
          text_tokenizers.load(tokenizer), vocabulary))


@registry.register_dataset(spec=_completions_spec)
def completions(split: str,
                *,
                tokenizer: str,
                length: int,
                prompt: str = 'prompt',
                completion: str = 'completion',
                padding: str = 'right',
                vocabulary: Optional[int] = None,
                tfds: Optional[str] = None,
                source_dir: Optional[str] = None,
                data_dir: Optional[str] = None) -> source.Source:
  """Prompts with completions; only the completions are learned.

  Files are as for `text`, of the kinds that have fields. A row is a prompt with
  the special tokens that its tokenizer puts before a text, directly followed by
  the completion and the token that ends texts. The two are tokenised separately
  and joined as they are: a space between them must be in one of them, and chat
  templates are not applied. If they are longer than a row, the prompt loses its
  beginning, and then the completion its end.

  Args:
    split: 'train', 'validation' or another split of the data set, or a slice of
      one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it.
    length: N, the number of tokens in a row.
    prompt: the field of the prompt.
    completion: the field of the completion.
    padding: the side of the padding, 'right' or 'left'.
    vocabulary: V is at least this.
    tfds: the name of the data set in tfds; it must be prepared in `data_dir`.
    source_dir: the folder of the files.
    data_dir: the folder of prepared files; None for that of tfds.

  Returns:
    A Source of `tokens`, `mask`, `label` and `target_mask`, which is true where
    a token of the completion is predicted.

  Raises:
    ConfigError: an option out of its range.
    DataError: files or a tokenizer that cannot be used, or an unknown or empty
      split.
  """
  packing.check_options(length, padding)
  location = text_files.Location(source_dir, data_dir, tfds, 'file', prompt,
                                 ((prompt, completion),))

  def make_format(
      loaded: tokenizer_lib.Tokenizer,
      corpus: text_files.Corpus) -> text_prepared.RowFormat:
    del corpus
    return _Completions(loaded, length, prompt, completion, padding)

  return text_prepared.open_rows(
      make_format, tokenizer, location, split,
      num_classes=lambda loaded: text_tokenizers.vocabulary_size(
          loaded, vocabulary))
