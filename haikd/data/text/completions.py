"""Prompts with completions for language models."""

from typing import NamedTuple, Optional

import numpy as np

from haikd.core import registry
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data.text import packing
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

  def recipe(self):
    options = self._asdict() | dict(tokenizer=None)
    return text_prepared.Recipe(
        'completions', options, packing.row_dtype(self.length), self._rows)

  def _rows(self, batches, counts):
    pad = text_tokenizers.filler(self.tokenizer)
    end = text_tokenizers.ending(self.tokenizer)
    for batch in batches:
      prompts, completions = (
          [text_files.text_of(record, field) for record in batch]
          for field in (self.prompt, self.completion))
      for prompt, completion in zip(
          self.tokenizer.encode_batch(prompts),
          self.tokenizer.encode_batch(completions, special=False)):
        first = prompt.ids
        if len(first) and first[-1] == end:
          first = first[:-1]  # The text goes on.
        second = text_tokenizers.end_with(end, completion.ids)
        counts['tokens'] += len(first) + len(second)
        counts['cut'] += len(first) + len(second) > self.length
        second = second[:self.length]
        first = first[max(0, len(first) + len(second) - self.length):]
        yield packing.row(
            [first, second],
            [np.full(len(first), _PROMPT), np.full(len(second), _COMPLETION)],
            self.length, pad=pad, padding=self.padding)

  def expand(self, rows):
    tokens, parts = rows['tokens'], rows['parts']
    label, target_mask = tokens_lib.next_token(
        tokens, parts > 0, completion=parts == _COMPLETION)
    return dict(tokens=tokens, mask=parts > 0, label=label,
                target_mask=target_mask)


def _completions_spec(*, tokenizer, length, vocabulary=None, **options):
  del options
  packing.check('completions.completions', length, 'right')
  return spec_lib.Spec(
      tokens_lib.columns(length),
      text_tokenizers.vocabulary_size(
          'completions.completions', text_tokenizers.load(tokenizer),
          vocabulary))


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
  """Prompts with completions, of which the completions are learned.

  Files are as for `text`, of the kinds that have fields. A row is a prompt with
  the special tokens that its tokenizer puts before a text, right after it the
  completion, and the token that ends texts. The two are tokenised each by
  itself, and joined as they are: a space between them has to be in one of them,
  and chat templates are not applied. Where they are longer than a row, the
  prompt is cut at its beginning, and the completion at its end.

  Args:
    split: 'train', 'validation' or what else there is, or a slice of one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it.
    length: N, the number of tokens in a row.
    prompt: the field of the prompt.
    completion: the field of the completion.
    padding: on which side rows are filled up, 'right' or 'left'.
    vocabulary: V is at least this.
    tfds: what tfds calls the data set, which has to be prepared in `data_dir`.
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
  packing.check('completions.completions', length, padding)
  where = text_files.Where(source_dir, data_dir, tfds, 'file', prompt,
                           ((prompt, completion),))

  def make(loaded, corpus):
    del corpus
    return _Completions(loaded, length, prompt, completion, padding)

  return text_prepared.open_rows(
      make, tokenizer, where, split,
      classes=lambda loaded: text_tokenizers.vocabulary_size(
          'completions.completions', loaded, vocabulary))
