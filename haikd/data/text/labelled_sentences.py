"""Sentences with a class, alone or in pairs."""

from collections.abc import Sequence
import hashlib
import numbers
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data.text import sentence_rows
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_tokenizers
from haikd.storage import files

Classes = Union[int, Sequence[str]]  # How many there are, or their names.

_WHERE = 'labelled_sentences.labelled_sentences'


class _Labelled(NamedTuple):
  """How a text, or two, and a class become a row."""

  encoder: sentence_rows.Encoder
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
        dict(self.encoder.options(), fields=self[1:]),
        np.dtype(columns), self._rows, self._uncut)

  def _rows(self, batches, counts):
    made = np.zeros((), self.recipe().dtype)
    for batch in batches:
      texts, pairs = self._texts(batch)
      encoded = self.encoder.encode(texts, counts, pairs)
      for record, (tokens, types, mask) in zip(batch, encoded):
        made['tokens'], made['mask'] = tokens, mask
        made['label'] = self._class(record)
        if self.types:
          made['types'] = types
        yield made

  def _uncut(self, batches):
    for batch in batches:
      yield from self.encoder.uncut(*self._texts(batch))

  def _texts(self, batch):
    """Returns the first texts, and the second ones or None."""
    return tuple(
        field and [text_files.text_of(record, field) for record in batch]
        for field in (self.field, self.second))

  def _class(self, record):
    value = text_files.value_of(record, self.label)
    count = _count(self.classes)
    if isinstance(value, bytes):
      value = text_files.text_of(record, self.label)
    if isinstance(value, str) and not isinstance(self.classes, int):
      if value in self.classes:
        return tuple(self.classes).index(value)
    elif isinstance(value, numbers.Integral) and value < count:
      return int(value) if value >= 0 else base.IGNORED_LABEL
    names = '' if isinstance(self.classes, int) else (
        f' ({", ".join(self.classes)})')
    raise checks.DataError(
        f'{_WHERE}: {record.place} must have one of {count} classes{names} in '
        f'{self.label!r}; got {value!r}. Set config.data.options.classes, or '
        'mend the data.')

  def expand(self, rows):
    columns = {key: rows[key] for key in rows.dtype.names}
    return columns | {key: rows[key].astype(np.int32)
                      for key in ('types',) if key in columns}


def _labelled_spec(*, tokenizer, length, second=None, classes=None,
                   padding='right', types=True, prune=False, **options):
  del options, prune
  if classes is None:
    return None  # The data says which there are.
  loaded = text_tokenizers.load(tokenizer)
  sentence_rows.Encoder(loaded, length, padding).check(_WHERE)
  row = spec_lib.Column((length,), np.int32)
  columns = dict(tokens=row, mask=spec_lib.Column((length,), np.bool_),
                 label=spec_lib.Column((), np.int32))
  if _has_types(loaded, second, types):
    columns['types'] = row
  return spec_lib.Spec(columns, _count(classes))


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
    tokenizer: as `haikd.data.text.tokenizer.load` takes it.
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
  fields = (field, label) if second is None else (field, second, label)
  where = text_files.Where(source_dir, data_dir, tfds, 'file', field, (fields,))
  if classes is None:
    classes = _find_classes(where, label)

  def make(loaded, corpus):
    del corpus
    encoder = sentence_rows.Encoder(loaded, length, padding)
    encoder.check(_WHERE)
    return _Labelled(encoder, field, second, label, classes,
                     _has_types(loaded, second, types))

  return text_prepared.open_rows(make, tokenizer, where, split, prune=prune,
                                 classes=lambda loaded: _count(classes))


def _has_types(tokenizer, second, wanted):
  if second is None or not wanted:
    return False
  return bool(tokenizer.encode_batch(['a'], ['a'])[0].types.any())


def _count(classes):
  if isinstance(classes, (list, tuple)) and classes:
    return len(classes)
  if isinstance(classes, int) and classes > 0:
    return classes
  raise checks.ConfigError(
      f'{_WHERE}: classes must be how many there are, or a tuple of their '
      f'names; got classes={classes!r}.')


def _find_classes(where: text_files.Where, field: str) -> Classes:
  """Returns the classes of the split 'train'; read once and kept."""
  where = where._replace(fields=((field,),))
  corpus = text_prepared.find(where, 'train')
  key = hashlib.sha256(f'{corpus.digest} {field}'.encode()).hexdigest()[:16]
  kept = text_tokenizers.root(where.data_dir) / 'classes' / f'{key}.json'
  if not kept.exists():
    found = {_plain(record, field) for record in corpus.records()}
    names = sorted(x for x in found if isinstance(x, str))
    if names and len(names) < len(found):
      raise checks.DataError(
          f'{_WHERE}: classes must all be names, or all be numbers; got both '
          f'in {field!r} of split {corpus.split!r}. Mend the data.')
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
