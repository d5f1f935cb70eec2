"""Sentences with a class, alone or in pairs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import hashlib
import numbers
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.data import columns as columns_lib
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data.text import affixes
from haikd.data.text import sentence_rows
from haikd.data.text import shards
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_records
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import two_tokenizations
from haikd.storage import files

Classes = Union[int, Sequence[str]]  # The number of classes, or their names.


class _LabelledSentences(NamedTuple):
  """How a text, or a pair of texts, and a class become a row."""

  encoder: sentence_rows.SentenceEncoder
  field: str
  second: Optional[str]
  label: str
  classes: Classes
  types: bool

  def recipe(self) -> shards.Recipe:
    shape = (self.encoder.length,)
    columns = [('tokens', '<i4', shape), ('mask', '?', shape), ('label', '<i4')]
    if self.types:
      columns.append(('types', 'u1', shape))
    # The order of `fields` is part of the cache key.
    fields = (self.field, self.second, self.label, self.classes, self.types)
    return shards.Recipe(
        'labelled_sentences', dict(self.encoder.options(), fields=fields),
        np.dtype(columns), self._rows, self._full_ids, self.encoder.notices())

  def _rows(self, batches: shards.Batches,
            counts: Counter) -> Iterator[np.ndarray]:
    row = np.zeros((), self.recipe().dtype)
    for batch in batches:
      texts, pairs, classes = self._read(batch, counts)
      encoded = self.encoder.encode(texts, counts, pairs)
      for row['label'], (tokens, types, mask) in zip(classes, encoded):
        row['tokens'], row['mask'] = tokens, mask
        if self.types:
          row['types'] = types
        yield row

  def _full_ids(self, batches: shards.Batches) -> Iterator[np.ndarray]:
    for batch in batches:
      texts, pairs, _ = self._read(batch, Counter())
      yield from self.encoder.full_ids(texts, pairs)

  def _read(
      self, batch: list[text_records.Record], counts: Counter
  ) -> tuple[list[str], Optional[list[str]], list[int]]:
    """Returns the first texts, the second ones or None, and the classes."""
    fields = [self.field] if self.second is None else [self.field, self.second]
    rows = [row for _, row in text_records.usable(
        batch, lambda record: (
            [text_records.text_of(record, field) for field in fields],
            self._class_of(record)), counts)]
    columns = [[texts[i] for texts, _ in rows] for i in range(len(fields))]
    return (columns[0], columns[1] if self.second else None,
            [label for _, label in rows])

  def _class_of(self, record: text_records.Record) -> int:
    """Returns the number of a record's class, or IGNORED_LABEL."""
    value = text_records.value_of(record, self.label)
    count = _count(self.classes)
    if isinstance(value, bytes):
      value = text_records.text_of(record, self.label)
    if isinstance(value, str) and not isinstance(self.classes, int):
      if value in self.classes:
        return tuple(self.classes).index(value)
    number = text_records.number_of(record, self.label)
    if isinstance(number, numbers.Integral):
      number = int(number)
      if number < count:
        return number if number >= 0 else base.IGNORED_LABEL
    names = '' if isinstance(self.classes, int) else (
        f' ({", ".join(self.classes)})')
    raise checks.DataError(
        f'{record.place} must have one of {count} classes{names} in the field '
        f'{self.label!r}; got {value!r}. Set config.data.options.classes, or '
        'fix the data.')

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    columns = {key: rows[key] for key in ('tokens', 'mask', 'label')}
    if self.types:
      columns['types'] = rows['types'].astype(np.int32)
    return columns


def _labelled_spec(*, tokenizer, length, student_tokenizer=None, second=None,
                   classes=None, padding='right', types=True, prune=False,
                   **options):
  del options, prune
  if classes is None:
    return None  # Only the data says which classes there are.
  row = spec_lib.Column((length,), np.int32)
  columns = dict(label=spec_lib.Column((), np.int32))
  for prefix, path in (('', tokenizer),
                       (columns_lib.STUDENT, student_tokenizer)):
    if path is not None:
      loaded = text_tokenizers.load(path)
      sentence_rows.SentenceEncoder(loaded, length, padding).check_options()
      columns[f'{prefix}tokens'] = row
      columns[f'{prefix}mask'] = spec_lib.Column((length,), np.bool_)
      if _has_types(loaded, second, types):
        columns[f'{prefix}types'] = row
  return spec_lib.Spec(columns, _count(classes))


@registry.register_dataset(spec=_labelled_spec, tasks=('classification',))
def labelled_sentences(split: str,
                       *,
                       tokenizer: str,
                       student_tokenizer: Optional[str] = None,
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
                       data_dir: Optional[str] = None,
                       reading: reading_lib.Reading = reading_lib.Reading()
                       ) -> source.Source:
  """Texts, or pairs of texts, with a class.

  Files are as for `text`, of the kinds that have fields. A pair is one row, as
  the tokenizer joins two sentences.

  Args:
    split: 'train', 'validation' or another split of the data set, or a slice of
      one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it.
    student_tokenizer: that of the student, as for `sentences`.
    length: N, the number of tokens in a row.
    field: the field of the text.
    second: the field of the second text of a pair; None for single texts.
    label: the field of the class: its name, or its number, which is negative
      for an example without a class.
    classes: the number of classes, or their names in order. None takes them
      from the split 'train': the largest number plus 1, or all names in
      alphabetical order.
    types: whether pairs have `types`, the sentence that a token belongs to, if
      the tokenizer distinguishes them; False for a model without them.
    padding: the side of the padding, 'right' or 'left'.
    prune: as for `text`.
    tfds: the name of the data set in tfds; it must be prepared in `data_dir`.
    source_dir: the folder of the files.
    data_dir: the folder of prepared files; None for that of tfds.
    reading: the limits of its files, and what is done about broken records.

  Returns:
    A Source of `tokens`, `mask` and `label`; for pairs also of `types`. With
    `student_tokenizer` also of `student/tokens` and so on.

  Raises:
    ConfigError: an option out of its range.
    DataError: files or a tokenizer that cannot be used, an unknown or empty
      split, or a label that is not one of the classes.
  """
  fields = (field, label) if second is None else (field, second, label)
  location = text_files.Location(
      source_dir, data_dir, tfds, 'file', field, (fields,), reading=reading)
  if classes is None:
    classes = _find_classes(location, label)

  def make_format(
      loaded: tokenizer_lib.Tokenizer,
      corpus: text_files.Corpus) -> text_prepared.RowFormat:
    del corpus
    encoder = sentence_rows.SentenceEncoder(loaded, length, padding)
    encoder.check_options()
    return _LabelledSentences(encoder, field, second, label, classes,
                              _has_types(loaded, second, types))

  opened = two_tokenizations.open_rows(
      lambda path: text_prepared.open_rows(
          make_format, path, location, split, prune=prune,
          num_classes=lambda loaded: _count(classes)),
      tokenizer, student_tokenizer)
  if not isinstance(classes, int):
    opened.class_names = classes
  return opened


def _has_types(tokenizer, second, types):
  """Returns whether rows have `types`.

  They have if they are pairs, the option asks for it, and the tokenizer
  distinguishes the two sentences.
  """
  if second is None or not types:
    return False
  text = affixes.probe(tokenizer)
  return bool(tokenizer.encode_batch([text], [text])[0].types.any())


def _count(classes):
  """Returns the number of classes; raises ConfigError if there is none."""
  if isinstance(classes, (list, tuple)) and classes:
    return len(classes)
  if isinstance(classes, int) and classes > 0:
    return classes
  raise checks.ConfigError(
      'config.data.options.classes must be the number of classes, or a tuple '
      f'of their names; got {classes!r}.')


def _find_classes(location: text_files.Location, field: str) -> Classes:
  """Returns the classes of the split 'train'; computed once and cached."""
  location = location._replace(column_groups=((field,),))
  corpus = text_prepared.open_corpus(location, 'train')
  key = hashlib.sha256(f'{corpus.digest} {field}'.encode()).hexdigest()[:16]
  cached = text_tokenizers.root(location.data_dir) / 'classes' / f'{key}.json'
  if not cached.exists():
    broken = text_files.broken_of(corpus)
    labels = {label for _, label in text_records.usable(
        corpus.records(broken), lambda record: _name_or_number(record, field),
        Counter())}
    if not labels:
      broken.refuse_rest()
    names = sorted(x for x in labels if isinstance(x, str))
    if names and len(names) < len(labels):
      raise checks.DataError(
          f'The field {field!r} of split {corpus.split!r} must hold only names '
          'of classes, or only numbers; got both. Fix the data.')
    with text_tokenizers.explaining_write_errors(cached.parent):
      cached.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(cached, names or max(labels, default=0) + 1)
  return files.read_json(cached)


def _name_or_number(record, field) -> Any:
  """Returns a class as its name or number."""
  value = text_records.number_of(record, field)
  if isinstance(value, numbers.Integral):
    return int(value)
  return text_records.text_of(record, field)
