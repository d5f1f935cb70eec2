"""Sentences for encoders, alone or in pairs with a score."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.core import tasks
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data.text import sentence_rows
from haikd.data.text import shards
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_records
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import two_tokenizations


class _Sentences(NamedTuple):
  """How each sentence becomes a row."""

  encoder: sentence_rows.SentenceEncoder
  field: str

  def recipe(self) -> shards.Recipe:
    shape = (self.encoder.length,)
    return shards.Recipe(
        'sentences', dict(self.encoder.options(), fields=(self.field,)),
        np.dtype([('tokens', '<i4', shape), ('mask', '?', shape)]), self._rows,
        self._full_ids, self.encoder.notices())

  def _rows(self, batches: shards.Batches,
            counts: Counter) -> Iterator[np.ndarray]:
    row = np.zeros((), self.recipe().dtype)
    for batch in batches:
      texts = text_records.texts_of(batch, self.field, counts)
      for tokens, _, mask in self.encoder.encode(texts, counts):
        row['tokens'], row['mask'] = tokens, mask
        yield row

  def _full_ids(self, batches: shards.Batches) -> Iterator[np.ndarray]:
    for batch in batches:
      yield from self.encoder.full_ids(
          text_records.texts_of(batch, self.field, Counter()))

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    return dict(tokens=rows['tokens'], mask=rows['mask'])


class _ScoredPairs(NamedTuple):
  """How two sentences and a score become a row."""

  encoder: sentence_rows.SentenceEncoder
  first: str
  second: str
  score: str

  def recipe(self) -> shards.Recipe:
    shape = (2, self.encoder.length)
    # The order of `fields` is part of the cache key.
    fields = (self.first, self.second, self.score)
    return shards.Recipe(
        'sentences', dict(self.encoder.options(), fields=fields),
        np.dtype([('tokens', '<i4', shape), ('mask', '?', shape),
                  ('label', '<f4')]), self._rows, self._full_ids,
        self.encoder.notices())

  def _rows(self, batches: shards.Batches,
            counts: Counter) -> Iterator[np.ndarray]:
    row = np.zeros((), self.recipe().dtype)
    for batch in batches:
      pairs = self._pairs(batch, counts)
      first = self.encoder.encode([first for first, _, _ in pairs], counts)
      second = self.encoder.encode([second for _, second, _ in pairs], counts)
      for (_, _, row['label']), *pair in zip(pairs, first, second):
        for i, (tokens, _, mask) in enumerate(pair):
          row['tokens'][i], row['mask'][i] = tokens, mask
        yield row

  def _full_ids(self, batches: shards.Batches) -> Iterator[np.ndarray]:
    for batch in batches:
      for first, second, _ in self._pairs(batch, Counter()):
        yield from self.encoder.full_ids([first, second])

  def _pairs(self, batch, counts) -> list[tuple[str, str, float]]:
    """Returns both sentences, and the score, of records that have them."""
    return [pair for _, pair in text_records.usable(batch, self._read, counts)]

  def _read(self, record):
    first, second = (text_records.text_of(record, field)
                     for field in (self.first, self.second))
    return first, second, self._score_of(record)

  def _score_of(self, record):
    value = text_records.number_of(record, self.score)
    if not checks.is_number(value):
      raise checks.DataError(
          f'{record.place} must have a finite number in the field '
          f'{self.score!r}; got {value!r}. Remove or fix the record.')
    return value

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    return {key: rows[key] for key in ('tokens', 'mask', 'label')}


# They have no targets, or a score for metrics of vectors.
@registry.register_dataset(tasks=(*tasks.OF_TEXTS, *tasks.OF_POSITIONS))
def sentences(split: str,
              *,
              tokenizer: str,
              student_tokenizer: Optional[str] = None,
              length: int,
              field: str = 'text',
              first: str = 'sentence1',
              second: str = 'sentence2',
              score: str = 'score',
              documents: str = 'line',
              padding: str = 'right',
              prune: bool = False,
              tfds: Optional[str] = None,
              source_dir: Optional[str] = None,
              data_dir: Optional[str] = None,
              reading: reading_lib.Reading = reading_lib.Reading()
              ) -> source.Source:
  """Sentences for an encoder, or pairs of them with a score of similarity.

  Files are as for `text`. Each sentence gets the special tokens that the
  tokenizer puts around a text, and is truncated to the length of a row. The
  first record of a split decides whether it has sentences or pairs; the splits
  of one data set may differ.

  Args:
    split: 'train', 'validation' or another split of the data set, or a slice of
      one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it.
    student_tokenizer: that of the student, whose texts are then tokenized apart
      from the teacher's; None if it has no other.
    length: N, the number of tokens in a row, for both.
    field: the field of a sentence.
    first: the field of the first sentence of a pair.
    second: the field of the second sentence of a pair.
    score: the field of the score of a pair, a number.
    documents: what a sentence is in `.txt` files, as for `text`.
    padding: the side of the padding, 'right' or 'left'.
    prune: as for `text`.
    tfds: the name of the data set in tfds; it must be prepared in `data_dir`.
    source_dir: the folder of the files.
    data_dir: the folder of prepared files; None for that of tfds.
    reading: the limits of its files, and what is done about broken records.

  Returns:
    A Source of `tokens` and `mask`, `[N]`; for pairs `[2, N]`, and `label`, a
    float32 number. There are no classes. With `student_tokenizer` also of
    `student/tokens` and `student/mask`.

  Raises:
    ConfigError: an option out of its range.
    DataError: files or a tokenizer that cannot be used, or an unknown or empty
      split.
  """
  location = text_files.Location(
      source_dir, data_dir, tfds, documents, field,
      ((field,), (first, second, score)), reading=reading)

  def make_format(
      loaded: tokenizer_lib.Tokenizer,
      corpus: text_files.Corpus) -> text_prepared.RowFormat:
    encoder = sentence_rows.SentenceEncoder(loaded, length, padding)
    encoder.check_options()

    def of_first(record: text_records.Record) -> text_prepared.RowFormat:
      if field in record.values:
        return _Sentences(encoder, field)
      if {first, second, score} <= set(record.values):
        return _ScoredPairs(encoder, first, second, score)
      raise checks.DataError(
          f'{record.place} must have the field {field!r}, or the fields '
          f'{first!r}, {second!r} and {score!r}; got {sorted(record.values)}. '
          'config.data.options sets their names.')

    return text_files.read_first(corpus, of_first)

  return two_tokenizations.open_rows(
      lambda path: text_prepared.open_rows(
          make_format, path, location, split, prune=prune,
          num_classes=lambda loaded: None),
      tokenizer, student_tokenizer)
