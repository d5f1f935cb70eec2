"""Texts for language models: whole documents, and prompts with completions."""

from typing import Any, NamedTuple, Optional

import jax
import numpy as np

from haikd import checks
from haikd import registry
from haikd import tokenizer as tokenizer_lib
from haikd.data import packing
from haikd.data import source
from haikd.data import text_files
from haikd.data import text_prepared
from haikd.data import tokens as tokens_lib

FORMS = ('packed', 'padded')

_PROMPT, _COMPLETION = 1, 2  # The parts of a row of `completions`.


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
        'text', options, packing.row_dtype(self.length), self._rows)

  def _rows(self, batches, counts):
    pad = filler(self.tokenizer)
    documents = self._encode(batches, counts)
    if self.form == 'packed':
      yield from packing.pack(documents, self.length, pad=pad,
                              padding=self.padding)
      return
    for piece in packing.pieces(documents, self.length):
      yield packing.row([piece], [np.ones_like(piece)], self.length, pad=pad,
                        padding=self.padding)

  def _encode(self, batches, counts):
    end = ending(self.tokenizer)
    for batch in batches:
      texts = [text_files.text_of(record, self.field) for record in batch]
      for encoded in self.tokenizer.encode_batch([t for t in texts if t]):
        ids = end_with(end, encoded.ids)
        counts['tokens'] += len(ids)
        yield ids

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
    pad, end = filler(self.tokenizer), ending(self.tokenizer)
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
        second = end_with(end, completion.ids)
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


def _text_spec(*, tokenizer, length, form='packed', vocabulary=None,
               prune=False, **options):
  del options
  if prune:
    return None  # The data says how much is left.
  _check_form(form)
  packing.check('text.text', length, 'right')
  size = _classes('text.text',
                  text_prepared.load_tokenizer(tokenizer), vocabulary)
  columns = tokens_lib.columns(length)
  if form == 'packed':
    row = jax.ShapeDtypeStruct((length,), np.int32)
    columns.update(segments=row, positions=row)
  return source.Spec(columns, size)


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
    tokenizer: as `haikd.tokenizer.load` takes it: a folder, `tokenizer.json`,
      or 'gguf:<file>'.
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
  where = text_files.Where(source_dir, data_dir, tfds, documents, field)
  loaded, kept_ids = text_prepared.load_tokenizer(tokenizer), None
  made = _Documents(loaded, length, form, field, padding)
  if prune:
    loaded, kept_ids = text_prepared.prune(loaded, made.recipe(), where)
    made = made._replace(tokenizer=loaded)
  return _open(made, where, split, kept_ids,
               _classes('text.text', loaded, vocabulary))


def _completions_spec(*, tokenizer, length, vocabulary=None, **options):
  del options
  packing.check('text.completions', length, 'right')
  return source.Spec(
      tokens_lib.columns(length),
      _classes('text.completions',
               text_prepared.load_tokenizer(tokenizer), vocabulary))


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
    tokenizer: as `haikd.tokenizer.load` takes it.
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
  packing.check('text.completions', length, padding)
  where = text_files.Where(source_dir, data_dir, tfds, 'file', prompt)
  loaded = text_prepared.load_tokenizer(tokenizer)
  made = _Completions(loaded, length, prompt, completion, padding)
  return _open(made, where, split, None,
               _classes('text.completions', loaded, vocabulary))


def _open(made: Any, where: text_files.Where, split: str,
          kept_ids: Optional[np.ndarray], num_classes: int) -> source.Source:
  recipe = made.recipe()
  folder = text_prepared.prepare(recipe, made.tokenizer, where, split)
  info = text_prepared.keep_tokenizer(made.tokenizer, where.data_dir, kept_ids)
  return text_prepared.Rows(folder, recipe.dtype, made.expand, num_classes,
                            info)


def ending(tokenizer: tokenizer_lib.Tokenizer) -> int:
  """Returns the token that ends a text; raises DataError if there is none."""
  special = tokenizer.special
  end = special.sep if special.eos is None else special.eos
  if end is None:
    raise checks.DataError(
        'text.ending: tokenizer must have a token that ends texts; got '
        f'{special}. Name it in tokenizer_config.json as eos_token.')
  return end


def end_with(end: int, ids: np.ndarray) -> np.ndarray:
  """Returns ids with one more at the end, unless it stands there."""
  if len(ids) and ids[-1] == end:
    return ids
  return np.append(ids, np.int32(end))


def filler(tokenizer: tokenizer_lib.Tokenizer) -> int:
  """Returns the token that fills rows up, which the mask hides."""
  special = tokenizer.special
  found = (special.pad, special.eos, special.sep, 0)
  return next(i for i in found if i is not None)


def _classes(where, tokenizer, vocabulary):
  if vocabulary is not None and vocabulary < tokenizer.size:
    raise checks.ConfigError(
        f'{where}: vocabulary must be no smaller than the tokenizer; got '
        f'vocabulary={vocabulary}, tokenizer.size={tokenizer.size}. Set it to '
        'None, or prune=True.')
  return vocabulary or tokenizer.size


def _check_form(form):
  if form not in FORMS:
    raise checks.ConfigError(
        f'text.text: form must be packed or padded; got form={form!r}. '
        f'{checks.suggest(form, FORMS)}')
