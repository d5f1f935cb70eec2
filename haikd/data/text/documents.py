"""Documents for language models, packed into full rows or padded."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.core import notes
from haikd.core import registry
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data.text import framing
from haikd.data.text import overlap
from haikd.data.text import packing
from haikd.data.text import shards
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_records
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import tokens as tokens_lib

_EMPTY = 'empty'

FORMS = ('packed', 'padded')
PREPARE = ('first', 'ahead')


class _Documents(NamedTuple):
  """How documents become rows."""

  tokenizer: tokenizer_lib.Tokenizer
  length: int
  form: str
  field: str
  padding: str
  choice: framing.Choice
  frame: framing.Frame

  def recipe(self) -> shards.Recipe:
    options = dict(
        length=self.length, form=self.form, field=self.field,
        padding=self.padding, **self.choice._asdict())
    return shards.Recipe(
        'text', options, packing.row_dtype(self.length), self._rows,
        self._full_ids, {**self.frame.notices(), _EMPTY: 'are empty.'},
        ends=(self.frame.end,), ids_of=self._ids_of, renumber=self._renumber)

  def _rows(self, batches: shards.Batches,
            counts: Counter) -> Iterator[np.ndarray]:
    pad = self.frame.pad
    documents = self._documents(batches, counts)
    if self.form == 'packed':
      yield from packing.pack(documents, self.length, pad=pad,
                              padding=self.padding)
      return
    for piece in packing.pieces(documents, self.length):
      yield packing.row([piece], [np.ones_like(piece)], self.length, pad=pad,
                        padding=self.padding)

  def _documents(self, batches: shards.Batches,
                 counts: Counter) -> Iterator[np.ndarray]:
    texts = self._texts(batches, counts)
    for encoded in overlap.one_ahead(self._encode, texts):
      for ids in encoded:
        self.frame.count_held(ids, counts)
        document = np.concatenate([self.frame.missing_before(ids), ids,
                                   self.frame.missing_after(ids)])
        counts['tokens'] += len(document)
        yield document

  def _texts(self, batches: shards.Batches,
             counts: Counter) -> Iterator[list[str]]:
    """Yields the texts of batches, and counts those that are empty."""
    text_of = lambda record: text_records.text_of(record, self.field)
    for batch in batches:
      texts = []
      for record, text in text_records.usable(batch, text_of, counts):
        texts.append(text)
        if not text:
          if not counts[_EMPTY]:
            notes.say(f'{record.place} is an empty document; such are left out '
                      'and counted.')
          counts[_EMPTY] += 1
      yield texts

  def _encode(self, texts: list[str]) -> list[np.ndarray]:
    """Returns the ids of texts that are not empty."""
    return [encoded.ids for encoded in self.tokenizer.encode_batch(
        [text for text in texts if text], special=False)]

  def _full_ids(self, batches: shards.Batches) -> Iterator[np.ndarray]:
    if self.choice.pad is not None:
      yield np.array([self.frame.pad])
    yield from self._documents(batches, Counter())

  def _ids_of(self, rows: np.ndarray) -> np.ndarray:
    pad = [] if self.choice.pad is None else [self.frame.pad]
    return np.concatenate([rows['tokens'][rows['parts'] > 0], pad]).astype(int)

  def _renumber(self, rows: np.ndarray, kept_ids: np.ndarray) -> None:
    new_ids = np.zeros(1 + max(kept_ids.max(), rows['tokens'].max(initial=0)),
                       np.int32)
    new_ids[kept_ids] = np.arange(len(kept_ids))
    rows['tokens'] = np.where(
        rows['parts'] > 0, new_ids[rows['tokens']], self.frame.pad)

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
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
    return None  # Only the data says which tokens are kept.
  _check_form(form)
  packing.check_options(length, 'right')
  size = text_tokenizers.vocabulary_size(
      text_tokenizers.load(tokenizer), vocabulary)
  columns = tokens_lib.columns(length)
  if form == 'packed':
    row = spec_lib.Column((length,), np.int32)
    columns.update(segments=row, positions=row)
  return spec_lib.Spec(columns, size)


@registry.register_dataset(spec=_text_spec, tasks=('causal_lm',))
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
         eos: Optional[str] = None,
         bos: Optional[str] = None,
         pad: Optional[str] = None,
         add_special_tokens: Optional[bool] = None,
         prepare: str = 'first',
         tfds: Optional[str] = None,
         source_dir: Optional[str] = None,
         data_dir: Optional[str] = None,
         reading: reading_lib.Reading = reading_lib.Reading()
         ) -> source.Source:
  """Documents for a language model, tokenised once and cached in `data_dir`.

  A split is a file `<split>.txt`, `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`
  or `.arrow` in `source_dir`, a set of shards or a folder `<split>` of such
  files, or a split of a data set of tfds. A document gets the special tokens
  that its tokenizer puts around a text, unless it holds them already, and ends
  with the token that ends texts. Empty documents are left out. A document is
  held in memory while it is tokenised.

  Packed, documents are laid end to end and cut into full rows. `segments`
  numbers the documents of a row, and `positions` is the index of a token in its
  document. A document that continues in the next row is a separate document
  there. Only the last row of a shard, which has about 8 million characters, is
  padded. Padded, each document has its own row; a document that is longer than
  a row is cut into several.

  Args:
    split: 'train', 'validation' or another split of the data set, or a slice of
      one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it: a folder,
      `tokenizer.json`, or 'gguf:<file>'.
    length: N, the number of tokens in a row.
    form: 'packed' or 'padded'.
    field: the field of the text, in all but `.txt` files.
    documents: what a document is in `.txt` files: a 'file', a 'paragraph'
      (blank lines separate them) or a 'line'.
    padding: the side of the padding, 'right' or 'left'.
    vocabulary: V is at least this, for a teacher with more rows in its
      embedding than its tokenizer has tokens.
    prune: whether to keep only the tokens of the vocabulary that the split
      'train' uses, and those without which other texts could not be tokenised.
    eos: the token that ends a text, such as '<|im_end|>'; None for the
      tokenizer's.
    bos: the token that begins a text; None for what the tokenizer adds.
    pad: the token that fills rows up; None for the tokenizer's.
    add_special_tokens: whether a document gets the special tokens that the
      tokenizer adds; None for yes, unless it holds them already.
    prepare: 'first', or 'ahead' to begin to train while the texts are still
      being tokenised. Then the rows of the first epoch are shuffled within
      shards, which are read in order, whether they were there already or not.
      A mixture, a slice and an evaluation wait for all rows.
    tfds: the name of the data set in tfds; it must be prepared in `data_dir`.
    source_dir: the folder of the files, which may be in a bucket.
    data_dir: the folder of prepared files; None for that of tfds.
    reading: the limits of its files, and what is done about broken records.

  Returns:
    A Source of `tokens`, `mask`, `label` and `target_mask`; if packed, also of
    `segments` and `positions`.

  Raises:
    ConfigError: an option out of its range, a token that the tokenizer does not
      have, or options that contradict one another.
    DataError: files or a tokenizer that cannot be used, or an unknown or empty
      split.
  """
  _check_form(form)
  packing.check_options(length, padding)
  text_tokenizers.check_pruning(prune, vocabulary)
  if prepare not in PREPARE:
    raise checks.ConfigError(
        f"config.data.options.prepare must be 'first' or 'ahead'; got "
        f'{prepare!r}. {checks.suggest(prepare, PREPARE)}')
  if prune and prepare == 'ahead':
    raise checks.ConfigError(
        "config.data.options.prepare must be 'first' with prune=True, since "
        "all texts decide which tokens are kept; got 'ahead'.")
  choice = framing.Choice(eos, bos, pad, add_special_tokens)
  location = text_files.Location(
      source_dir, data_dir, tfds, documents, field, ((field,),),
      reading=reading)

  def make_format(
      loaded: tokenizer_lib.Tokenizer,
      corpus: text_files.Corpus) -> text_prepared.RowFormat:
    del corpus
    return _Documents(loaded, length, form, field, padding, choice,
                      framing.build(loaded, choice))

  def num_classes(loaded: tokenizer_lib.Tokenizer) -> int:
    return text_tokenizers.vocabulary_size(loaded, vocabulary)

  if prepare == 'ahead':
    return text_prepared.open_ahead(make_format, tokenizer, location, split,
                                    num_classes=num_classes)
  return text_prepared.open_rows(make_format, tokenizer, location, split,
                                 prune=prune, num_classes=num_classes)


def _check_form(form):
  if form not in FORMS:
    raise checks.ConfigError(
        f"config.data.options.form must be 'packed' or 'padded'; got {form!r}. "
        f'{checks.suggest(form, FORMS)}')
