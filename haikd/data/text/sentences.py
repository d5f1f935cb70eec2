"""Sentences for encoders, alone or in pairs with a score."""

from typing import NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import source
from haikd.data.text import sentence_rows
from haikd.data.text import text_files
from haikd.data.text import text_prepared


class _Sentences(NamedTuple):
  """How each sentence becomes a row."""

  encoder: sentence_rows.Encoder
  field: str

  def recipe(self):
    form = self.encoder.length,
    return text_prepared.Recipe(
        'sentences', dict(self.encoder.options(), fields=(self.field,)),
        np.dtype([('tokens', '<i4', form), ('mask', '?', form)]), self._rows,
        self._uncut)

  def _rows(self, batches, counts):
    made = np.zeros((), self.recipe().dtype)
    for batch in batches:
      texts = [text_files.text_of(record, self.field) for record in batch]
      for tokens, _, mask in self.encoder.encode(texts, counts):
        made['tokens'], made['mask'] = tokens, mask
        yield made

  def _uncut(self, batches):
    for batch in batches:
      yield from self.encoder.uncut(
          [text_files.text_of(record, self.field) for record in batch])

  def expand(self, rows):
    return dict(tokens=rows['tokens'], mask=rows['mask'])


class _Pairs(NamedTuple):
  """How two sentences and a score become a row."""

  encoder: sentence_rows.Encoder
  first: str
  second: str
  score: str

  def recipe(self):
    form = 2, self.encoder.length
    return text_prepared.Recipe(
        'sentences', dict(self.encoder.options(), fields=self[1:]),
        np.dtype([('tokens', '<i4', form), ('mask', '?', form),
                  ('label', '<f4')]), self._rows, self._uncut)

  def _rows(self, batches, counts):
    made = np.zeros((), self.recipe().dtype)
    for batch in batches:
      both = [
          self.encoder.encode([text_files.text_of(record, field)
                               for record in batch], counts)
          for field in (self.first, self.second)
      ]
      for record, *pair in zip(batch, *both):
        made['label'] = self._score(record)
        for i, (tokens, _, mask) in enumerate(pair):
          made['tokens'][i], made['mask'][i] = tokens, mask
        yield made

  def _uncut(self, batches):
    for batch in batches:
      for field in (self.first, self.second):
        yield from self.encoder.uncut(
            [text_files.text_of(record, field) for record in batch])

  def _score(self, record):
    value = text_files.value_of(record, self.score)
    if not checks.is_number(value):
      raise checks.DataError(
          f'sentences.sentences: {record.place} must have a finite number in '
          f'{self.score!r}; got {value!r}. Leave it out, or mend it.')
    return value

  def expand(self, rows):
    return {key: rows[key] for key in rows.dtype.names}


@registry.register_dataset()
def sentences(split: str,
              *,
              tokenizer: str,
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
              data_dir: Optional[str] = None) -> source.Source:
  """Sentences for an encoder, or pairs of them with how alike they are.

  Files are as for `text`. Each sentence gets the special tokens that the
  tokenizer puts around one, and is cut to the length of a row. Which of the two
  a split has, its first record says; the splits of one data set may differ.

  Args:
    split: 'train', 'validation' or what else there is, or a slice of one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it.
    length: N, the number of tokens in a row.
    field: what holds a sentence.
    first: what holds the first sentence of a pair.
    second: what holds its second sentence.
    score: what holds its score, a number.
    documents: what a sentence is in `.txt` files, as for `text`.
    padding: on which side rows are filled up, 'right' or 'left'.
    prune: as for `text`.
    tfds: what tfds calls the data set, which has to be prepared in `data_dir`.
    source_dir: the folder of the files.
    data_dir: the folder of prepared files; None for that of tfds.

  Returns:
    A Source of `tokens` and `mask`, `[N]`; of pairs `[2, N]`, and `label`, a
    float32 number. There are no classes.

  Raises:
    ConfigError: an option out of its range.
    DataError: files or a tokenizer that cannot be used, or an unknown or empty
      split.
  """
  where = text_files.Where(source_dir, data_dir, tfds, documents, field,
                           ((field,), (first, second, score)))

  def make(loaded, corpus):
    encoder = sentence_rows.Encoder(loaded, length, padding)
    encoder.check('sentences.sentences')
    record = text_prepared.first_record(corpus)
    if field in record.values:
      return _Sentences(encoder, field)
    if {first, second, score} <= set(record.values):
      return _Pairs(encoder, first, second, score)
    raise checks.DataError(
        f'sentences.sentences: {record.place} must have the field {field!r}, '
        f'or the fields {first!r}, {second!r} and {score!r}; got '
        f'{sorted(record.values)}. Their names are set in config.data.options.')

  return text_prepared.open_rows(make, tokenizer, where, split, prune=prune,
                                 classes=lambda loaded: None)
