"""Sentences for encoders: alone, in pairs with a score, and with labels."""

from collections.abc import Sequence
import hashlib
import numbers
from typing import Any, NamedTuple, Optional, Union

import jax
import numpy as np

from haikd import checks
from haikd import files
from haikd import registry
from haikd import tokenizer as tokenizer_lib
from haikd.data import packing
from haikd.data import source
from haikd.data import text_files
from haikd.data import text_prepared
from haikd.data import text_tokenizers
from haikd.data import tokens as tokens_lib

Classes = Union[int, Sequence[str]]  # How many there are, or their names.


class _Encoder(NamedTuple):
  """What is common to all rows of sentences."""

  tokenizer: tokenizer_lib.Tokenizer
  length: int
  padding: str

  def encode(self, texts, counts, pairs=None):
    """Yields tokens, types and mask of each text, `[N]` each."""
    pad = text_tokenizers.filler(self.tokenizer)
    for encoded in self.tokenizer.encode_batch(texts, pairs,
                                               length=self.length):
      counts['tokens'] += len(encoded.ids)
      room = self.length - len(encoded.ids)
      sides = (room, 0) if self.padding == 'left' else (0, room)
      yield (np.pad(encoded.ids, sides, constant_values=pad),
             np.pad(encoded.types, sides),
             np.pad(np.ones(len(encoded.ids), bool), sides))

  def check(self, where):
    """Raises ConfigError for rows without room for a token."""
    special = self.tokenizer.encode_batch([''], [''])[0].ids
    packing.check(where, self.length, self.padding, least=len(special) + 1)


class _Sentences(NamedTuple):
  """How each sentence becomes a row."""

  encoder: _Encoder
  field: str

  def recipe(self):
    form = self.encoder.length,
    return text_prepared.Recipe(
        'sentences', dict(self.encoder._asdict(), tokenizer=None,
                          fields=(self.field,)),
        np.dtype([('tokens', '<i4', form), ('mask', '?', form)]), self._rows)

  def _rows(self, batches, counts):
    made = np.zeros((), self.recipe().dtype)
    for batch in batches:
      texts = [text_files.text_of(record, self.field) for record in batch]
      for tokens, _, mask in self.encoder.encode(texts, counts):
        made['tokens'], made['mask'] = tokens, mask
        yield made

  def expand(self, rows):
    return dict(tokens=rows['tokens'], mask=rows['mask'])


class _Pairs(NamedTuple):
  """How two sentences and a score become a row."""

  encoder: _Encoder
  first: str
  second: str
  score: str

  def recipe(self):
    form = 2, self.encoder.length
    return text_prepared.Recipe(
        'sentences', dict(self.encoder._asdict(), tokenizer=None,
                          fields=self[1:]),
        np.dtype([('tokens', '<i4', form), ('mask', '?', form),
                  ('label', '<f4')]), self._rows)

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

  def _score(self, record):
    value = text_files.value_of(record, self.score)
    if not checks.is_number(value):
      raise checks.DataError(
          f'sentences.sentences: {record.place} must have a finite number in '
          f'{self.score!r}; got {value!r}. Leave it out, or mend it.')
    return value

  def expand(self, rows):
    return {key: rows[key] for key in rows.dtype.names}


class _Labelled(NamedTuple):
  """How a text, or two, and a class become a row."""

  encoder: _Encoder
  field: str
  second: Optional[str]
  label: str
  classes: Classes
  types: bool

  def recipe(self):
    form = self.encoder.length,
    columns = [('tokens', '<i4', form), ('mask', '?', form), ('label', '<i4')]
    if self.types:
      columns.append(('types', 'u1', form))
    return text_prepared.Recipe(
        'labelled_sentences',
        dict(self.encoder._asdict(), tokenizer=None, fields=self[1:]),
        np.dtype(columns), self._rows)

  def _rows(self, batches, counts):
    made = np.zeros((), self.recipe().dtype)
    for batch in batches:
      texts, pairs = (
          field and [text_files.text_of(record, field) for record in batch]
          for field in (self.field, self.second))
      encoded = self.encoder.encode(texts, counts, pairs)
      for record, (tokens, types, mask) in zip(batch, encoded):
        made['tokens'], made['mask'] = tokens, mask
        made['label'] = self._class(record)
        if self.types:
          made['types'] = types
        yield made

  def _class(self, record):
    value = text_files.value_of(record, self.label)
    count = _count(self.classes)
    if isinstance(value, bytes):
      value = text_files.text_of(record, self.label)
    if isinstance(value, str) and not isinstance(self.classes, int):
      if value in self.classes:
        return tuple(self.classes).index(value)
    elif isinstance(value, numbers.Integral) and value < count:
      return int(value) if value >= 0 else tokens_lib.UNLABELLED
    names = '' if isinstance(self.classes, int) else (
        f' ({", ".join(self.classes)})')
    raise checks.DataError(
        f'sentences.labelled_sentences: {record.place} must have one of {count}'
        f' classes{names} in {self.label!r}; got {value!r}. Set '
        'config.data.options.classes, or mend the data.')

  def expand(self, rows):
    columns = {key: rows[key] for key in rows.dtype.names}
    return columns | {key: rows[key].astype(np.int32)
                      for key in ('types',) if key in columns}


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
    tokenizer: as `haikd.tokenizer.load` takes it.
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
  where = text_files.Where(source_dir, data_dir, tfds, documents, field)

  def make(loaded, corpus):
    encoder = _Encoder(loaded, length, padding)
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


def _labelled_spec(*, tokenizer, length, second=None, classes=None,
                   padding='right', types=True, prune=False, **options):
  del options, prune
  if classes is None:
    return None  # The data says which there are.
  loaded = text_tokenizers.load(tokenizer)
  _Encoder(loaded, length, padding).check('sentences.labelled_sentences')
  row = jax.ShapeDtypeStruct((length,), np.int32)
  columns = dict(tokens=row, mask=jax.ShapeDtypeStruct((length,), np.bool_),
                 label=jax.ShapeDtypeStruct((), np.int32))
  if _has_types(loaded, second, types):
    columns['types'] = row
  return source.Spec(columns, _count(classes))


@registry.register_dataset(spec=_labelled_spec)
def labelled_sentences(split: str,
                       *,
                       tokenizer: str,
                       length: int,
                       field: str = 'text',
                       second: Optional[str] = None,
                       label: str = 'label',
                       classes: Optional[Classes] = None,
                       types: bool = True,
                       padding: str = 'right',
                       prune: bool = False,
                       tfds: Optional[str] = None,
                       source_dir: Optional[str] = None,
                       data_dir: Optional[str] = None) -> source.Source:
  """Texts, or pairs of texts, with a class.

  Files are as for `text`, of the kinds that have fields. A pair is one row, as
  the tokenizer joins two sentences.

  Args:
    split: 'train', 'validation' or what else there is, or a slice of one.
    tokenizer: as `haikd.tokenizer.load` takes it.
    length: N, the number of tokens in a row.
    field: what holds the text.
    second: what holds the second text of a pair; None for single texts.
    label: what holds the class: its name, or its number, below 0 for none.
    classes: how many there are, or their names in their order. None for those
      of the split 'train': as many as its largest number asks for, or its names
      in alphabetical order.
    types: whether pairs have `types`, which sentence a token is of, where the
      tokenizer says so; False for a model that has none.
    padding: on which side rows are filled up, 'right' or 'left'.
    prune: as for `text`.
    tfds: what tfds calls the data set, which has to be prepared in `data_dir`.
    source_dir: the folder of the files.
    data_dir: the folder of prepared files; None for that of tfds.

  Returns:
    A Source of `tokens`, `mask` and `label`, and of pairs of `types`.

  Raises:
    ConfigError: an option out of its range.
    DataError: files or a tokenizer that cannot be used, an unknown or empty
      split, or a class that is none of them.
  """
  where = text_files.Where(source_dir, data_dir, tfds, 'file', field)
  if classes is None:
    classes = _find_classes(where, label)

  def make(loaded, corpus):
    del corpus
    encoder = _Encoder(loaded, length, padding)
    encoder.check('sentences.labelled_sentences')
    return _Labelled(encoder, field, second, label, classes,
                     _has_types(loaded, second, types))

  return text_prepared.open_rows(make, tokenizer, where, split, prune=prune,
                                 classes=lambda loaded: _count(classes))


def _has_types(tokenizer, second, wanted):
  if second is None or not wanted:
    return False
  return bool(tokenizer.encode_batch(['a'], ['a'])[0].types.any())


def _count(classes):
  return classes if isinstance(classes, int) else len(classes)


def _find_classes(where: text_files.Where, field: str) -> Classes:
  """Returns the classes of the split 'train'; read once and kept."""
  corpus = text_prepared.find(where, 'train')
  key = hashlib.sha256(f'{corpus.digest} {field}'.encode()).hexdigest()[:16]
  kept = text_tokenizers.root(where.data_dir) / 'classes' / f'{key}.json'
  if not kept.exists():
    found = {_plain(record, field) for record in corpus.records()}
    names = sorted(x for x in found if isinstance(x, str))
    if names and len(names) < len(found):
      raise checks.DataError(
          'sentences.labelled_sentences: classes must all be names, or all be '
          f'numbers; got both in {field!r} of split {corpus.split!r}. Mend the '
          'data.')
    with text_tokenizers.writing(kept.parent):
      kept.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(kept, names or max(found, default=0) + 1)
  return files.read_json(kept)


def _plain(record, field) -> Any:
  """Returns a class as its name or number."""
  value = text_files.value_of(record, field)
  if isinstance(value, numbers.Integral):
    return int(value)
  return text_files.text_of(record, field)
