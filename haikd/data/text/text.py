"""Documents for language models, packed into full rows or padded."""

from typing import NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data.text import packing
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import tokens as tokens_lib

FORMS = ('packed', 'padded')


class _Documents(NamedTuple):
  """How documents become rows; with the tokenizer that is used for it."""

  tokenizer: tokenizer_lib.Tokenizer
  length: int
  form: str
  field: str
  padding: str

  def recipe(self):
    options = self._asdict() | dict(tokenizer=None)
    return text_prepared.Recipe(
        'text', options, packing.row_dtype(self.length), self._rows,
        self._encode)

  def _rows(self, batches, counts):
    pad = text_tokenizers.filler(self.tokenizer)
    documents = self._counted(batches, counts)
    if self.form == 'packed':
      yield from packing.pack(documents, self.length, pad=pad,
                              padding=self.padding)
      return
    for piece in packing.pieces(documents, self.length):
      yield packing.row([piece], [np.ones_like(piece)], self.length, pad=pad,
                        padding=self.padding)

  def _counted(self, batches, counts):
    for ids in self._encode(batches):
      counts['tokens'] += len(ids)
      yield ids

  def _encode(self, batches):
    end = text_tokenizers.ending(self.tokenizer)
    for batch in batches:
      texts = [text_files.text_of(record, self.field) for record in batch]
      for encoded in self.tokenizer.encode_batch([t for t in texts if t]):
        yield text_tokenizers.end_with(end, encoded.ids)

  def expand(self, rows):
    tokens, parts = rows['tokens'], rows['parts']
    mask = parts > 0
    packed = self.form == 'packed'
    label, target_mask = tokens_lib.next_token(
        tokens, mask, segments=parts if packed else None)
    columns = dict(tokens=tokens, mask=mask, label=label,
                   target_mask=target_mask)
    if packed:
      columns.update(segments=parts, positions=packing.positions(parts))
    return columns


def _text_spec(*, tokenizer, length, form='packed', vocabulary=None,
               prune=False, **options):
  del options
  if prune:
    return None  # The data says how much is left.
  _check_form(form)
  packing.check('text.text', length, 'right')
  size = text_tokenizers.vocabulary_size(
      'text.text', text_tokenizers.load(tokenizer), vocabulary)
  columns = tokens_lib.columns(length)
  if form == 'packed':
    row = spec_lib.Column((length,), np.int32)
    columns.update(segments=row, positions=row)
  return spec_lib.Spec(columns, size)


@registry.register_dataset(spec=_text_spec)
def text(split: str,
         *,
         tokenizer: str,
         length: int,
         form: str = 'packed',
         field: str = 'text',
         documents: str = 'file',
         padding: str = 'right',
         vocabulary: Optional[int] = None,
         prune: bool = False,
         tfds: Optional[str] = None,
         source_dir: Optional[str] = None,
         data_dir: Optional[str] = None) -> source.Source:
  """Documents for a language model, tokenised once and kept in `data_dir`.

  A split is a file `<split>.txt`, `<split>.jsonl` or `<split>.parquet` in
  `source_dir`, a folder `<split>` of such files, or a split of a data set of
  tfds. A document gets the special tokens that its tokenizer puts around a
  text, and ends with the one that ends texts; an empty one is left out. It is
  held in memory whole while it is tokenised.

  Packed, documents are laid end to end and cut into full rows, with a number
  for each document of a row in `segments` and the place in it in `positions`;
  what goes on in the next row is a document of its own there. Rows are filled
  up at the end of a shard, of 8 million characters, and nowhere else. Padded,
  each document, or piece of one that is longer than a row, has a row.

  Args:
    split: 'train', 'validation' or what else there is, or a slice of one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it: a folder,
      `tokenizer.json`, or 'gguf:<file>'.
    length: N, the number of tokens in a row.
    form: 'packed' or 'padded'.
    field: what holds the text in JSON lines, parquet and tfds.
    documents: what a document is in `.txt` files: a 'file', a 'paragraph'
      (blank lines stand between them) or a 'line'.
    padding: on which side rows are filled up, 'right' or 'left'.
    vocabulary: V is at least this, for a teacher with more rows in its
      embedding than its tokenizer has tokens.
    prune: whether to keep only those tokens of the vocabulary that the split
      'train' uses, and what other texts need to be cut into tokens at all.
    tfds: what tfds calls the data set, which has to be prepared in `data_dir`.
    source_dir: the folder of the files.
    data_dir: the folder of prepared files; None for that of tfds.

  Returns:
    A Source of `tokens`, `mask`, `label` and `target_mask`; if packed, also of
    `segments` and `positions`.

  Raises:
    ConfigError: an option out of its range, or `prune` with `vocabulary`.
    DataError: files or a tokenizer that cannot be used, or an unknown or empty
      split.
  """
  _check_form(form)
  packing.check('text.text', length, padding)
  if prune and vocabulary is not None:
    raise checks.ConfigError(
        'text.text: vocabulary must be None with prune=True, which says what '
        f'is left of it; got vocabulary={vocabulary}.')
  where = text_files.Where(source_dir, data_dir, tfds, documents, field,
                           ((field,),))

  def make(loaded, corpus):
    del corpus
    return _Documents(loaded, length, form, field, padding)

  return text_prepared.open_rows(
      make, tokenizer, where, split, prune=prune,
      classes=lambda loaded: text_tokenizers.vocabulary_size(
          'text.text', loaded, vocabulary))


def _check_form(form):
  if form not in FORMS:
    raise checks.ConfigError(
        f'text.text: form must be packed or padded; got form={form!r}. '
        f'{checks.suggest(form, FORMS)}')
