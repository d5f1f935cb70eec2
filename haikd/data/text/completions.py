"""Prompts with completions for language models."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data.text import framing
from haikd.data.text import learned
from haikd.data.text import overlap
from haikd.data.text import packing
from haikd.data.text import shards
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_records
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib

# Statistics.
_CUT, _CROSSING, _EMPTY, _UNREAD = 'cut', 'crossing', 'empty', 'unread'

# As Alpaca has prompts: the second field may be empty.
_INSTRUCTION, _INPUT = 'instruction', 'input'


class _Completions(NamedTuple):
  """How a prompt and its completion become a row."""

  tokenizer: tokenizer_lib.Tokenizer
  length: int
  prompt: str
  completion: str
  padding: str
  choice: framing.Choice
  frame: framing.Frame

  def recipe(self) -> shards.Recipe:
    options = dict(
        length=self.length, prompt=self.prompt, completion=self.completion,
        padding=self.padding, **self.choice._asdict())
    return shards.Recipe(
        'completions', options, packing.row_dtype(self.length), self._rows,
        ends=(self.frame.end,),
        notices={
            **self.frame.notices(),
            _CROSSING:
            'prompts end within a token, which is learned with the completion. '
            'Move blanks from the end of prompts to the beginning of '
            'completions.',
            _UNREAD:
            f'prompts go on in the field {_INPUT!r}, which is not read. Join '
            f'it with {_INSTRUCTION!r} to one field.',
            _EMPTY:
            'completions are empty: all that is learned is to stop.',
            _CUT:
            f'prompts and completions are cut to {self.length} tokens: '
            'config.data.options.length.',
        })

  def _rows(self, batches: shards.Batches,
            counts: Counter) -> Iterator[np.ndarray]:
    pairs = (self._read(batch, counts) for batch in batches)
    for encoded in overlap.one_ahead(self._encode, pairs):
      for boundary, whole in encoded:
        yield self._row(boundary, whole, counts)

  def _read(self, batch: list[text_records.Record],
            counts: Counter) -> list[tuple[str, str]]:
    """Returns each prompt with its completion."""
    pairs = []
    for record, pair in text_records.usable(batch, self._pair, counts):
      pairs.append(pair)
      counts[_UNREAD] += (self.prompt == _INSTRUCTION and
                          bool(record.values.get(_INPUT)))
    return pairs

  def _pair(self, record):
    self._refuse_messages(record)
    return (text_records.text_of(record, self.prompt),
            text_records.text_of(record, self.completion))

  def _encode(
      self, pairs: list[tuple[str, str]]) -> list[tuple[int, learned.Spans]]:
    """Returns the length of each prompt, with prompt and completion."""
    spans = learned.spans_of(self.tokenizer, list(map(''.join, pairs)))
    return [(len(prompt), whole) for (prompt, _), whole in zip(pairs, spans)]

  def _refuse_messages(self, record):
    for field in (self.prompt, self.completion):
      if isinstance(record.values.get(field), list):
        raise checks.DataError(
            f'{record.place} must have a text in the field {field!r}; got a '
            "list. config.data.name='chat' reads lists of messages.")

  def _row(self, boundary: int, whole: learned.Spans,
           counts: Counter) -> np.ndarray:
    """Returns a row.

    Args:
      boundary: the number of characters in the prompt.
      whole: prompt and completion.
      counts: the statistics.
    """
    ids, frame = whole.ids, self.frame
    start = whole.first_beyond(boundary)
    counts[_CROSSING] += (
        start < len(ids) and whole.begins_before(start, boundary))
    counts[_EMPTY] += start == len(ids)
    frame.count_held(ids, counts)
    # A token that begins texts is not learned, even without a prompt.
    held = len(frame.before) - len(frame.missing_before(ids))
    start = max(start, held)
    prompt = ids[held:start]
    completion = np.concatenate([ids[start:], frame.missing_after(ids)])
    size = len(frame.before) + len(prompt) + len(completion)
    counts['tokens'] += size
    counts[_CUT] += size > self.length
    # The prompt loses its beginning, then the completion its end.
    room = self.length - len(frame.before)
    completion = completion[:room]
    prompt = prompt[max(0, len(prompt) + len(completion) - room):]
    context = np.concatenate([frame.before, prompt])
    return learned.row(
        np.concatenate([context, completion]),
        np.repeat([False, True], [len(context), len(completion)]),
        self.length, pad=frame.pad, padding=self.padding)

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    return learned.expand(rows)


@registry.register_dataset(spec=learned.spec, tasks=('causal_lm',))
def completions(split: str,
                *,
                tokenizer: str,
                length: int,
                prompt: str = 'prompt',
                completion: str = 'completion',
                padding: str = 'right',
                vocabulary: Optional[int] = None,
                eos: Optional[str] = None,
                bos: Optional[str] = None,
                pad: Optional[str] = None,
                add_special_tokens: Optional[bool] = None,
                tfds: Optional[str] = None,
                source_dir: Optional[str] = None,
                data_dir: Optional[str] = None,
                reading: reading_lib.Reading = reading_lib.Reading()
                ) -> source.Source:
  """Prompts with completions; only the completions are learned.

  Files are as for `text`, of the kinds that have fields. A prompt is directly
  followed by its completion: a space between them must be in one of them. They
  are tokenised as one text, which gets the special tokens that its tokenizer
  puts around a text, unless it holds them already, and ends with the token that
  ends texts. A token with characters of both belongs to the completion. If they
  are longer than a row, the prompt loses its beginning, but not the tokens that
  begin texts; and then the completion its end. For messages with roles, use
  `chat`.

  Args:
    split: 'train', 'validation' or another split of the data set, or a slice of
      one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it.
    length: N, the number of tokens in a row.
    prompt: the field of the prompt.
    completion: the field of the completion.
    padding: the side of the padding, 'right' or 'left'.
    vocabulary: V is at least this.
    eos: the token that ends a completion, such as '<|im_end|>'; None for the
      tokenizer's.
    bos: the token that begins a prompt; None for what the tokenizer adds.
    pad: the token that fills rows up; None for the tokenizer's.
    add_special_tokens: whether prompt and completion get the special tokens
      that the tokenizer adds; None for yes, unless they hold them already.
    tfds: the name of the data set in tfds; it must be prepared in `data_dir`.
    source_dir: the folder of the files.
    data_dir: the folder of prepared files; None for that of tfds.
    reading: the limits of its files, and what is done about broken records.

  Returns:
    A Source of `tokens`, `mask`, `label` and `target_mask`, which is true where
    a token of the completion is predicted.

  Raises:
    ConfigError: an option out of its range, a token that the tokenizer does not
      have, or options that contradict one another.
    DataError: files or a tokenizer that cannot be used, or an unknown or empty
      split.
  """
  packing.check_options(length, padding)
  choice = framing.Choice(eos, bos, pad, add_special_tokens)
  columns = (prompt, completion)
  groups = ((*columns, _INPUT), columns) if prompt == _INSTRUCTION else (
      columns,)
  location = text_files.Location(
      source_dir, data_dir, tfds, 'file', prompt, groups, reading=reading)

  def make_format(
      loaded: tokenizer_lib.Tokenizer,
      corpus: text_files.Corpus) -> text_prepared.RowFormat:
    del corpus
    frame = framing.build(loaded, choice)
    packing.check_options(length, padding, min_length=len(frame.before) + 2)
    return _Completions(loaded, length, prompt, completion, padding, choice,
                        frame)

  return text_prepared.open_rows(
      make_format, tokenizer, location, split,
      num_classes=lambda loaded: text_tokenizers.vocabulary_size(
          loaded, vocabulary))
