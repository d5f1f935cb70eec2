"""Documents for masked language models: some words are hidden in each epoch."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import NamedTuple, Optional

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data.text import affixes
from haikd.data.text import overlap
from haikd.data.text import packing
from haikd.data.text import sentence_rows
from haikd.data.text import shards
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_records
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import tokens as tokens_lib
from haikd.data.text import words as words_lib

# What a chosen token becomes: [MASK], a random token, or else itself.
_MASKED, _RANDOM = 0.8, 0.1

_PADDING = -1  # In `words`: no token. A special token has 0, a word 1 or more.


class _MaskedText(NamedTuple):
  """How documents become rows, and rows examples with hidden words."""

  encoder: sentence_rows.SentenceEncoder
  field: str
  rate: float

  def recipe(self) -> shards.Recipe:
    # Words are chosen when rows are read: the rate is not part of the rows.
    options = dict(self.encoder.options(), field=self.field)
    row = (self.encoder.length,)
    return shards.Recipe(
        'masked_text', options,
        np.dtype([('tokens', '<i4', row), ('words', '<i4', row)]), self._rows,
        self._full_ids, self.encoder.notices())

  def _rows(self, batches: shards.Batches,
            counts: Counter) -> Iterator[np.ndarray]:
    tokenizer = self.encoder.tokenizer
    is_special = np.zeros(tokenizer.size, bool)
    special = text_tokenizers.special_ids(tokenizer, tokenizer.canonical())
    is_special[list(special)] = True
    around = affixes.of(tokenizer)
    texts = (self.encoder.strip(
        text_records.texts_of(batch, self.field, counts), counts)
             for batch in batches)
    encode = lambda batch: (batch, tokenizer.encode_spans(batch))
    for batch, encodings in overlap.one_ahead(encode, texts):
      words = words_lib.number_words(batch, encodings)
      ids = np.fromiter(
          itertools.chain.from_iterable(each.ids for each in encodings),
          np.int32, sum(map(len, words)))
      yield from self._frame(ids, words, around, is_special, counts)

  def _frame(self, ids: np.ndarray, words: list[np.ndarray],
             around: affixes.Affixes, is_special: np.ndarray,
             counts: Counter) -> np.ndarray:
    """Returns texts as rows.

    Args:
      ids: `[n]`, the tokens of all texts.
      words: of each text, from `words_lib.number_words`.
      around: what stands around a row.
      is_special: `[V]`, which tokens are special.
      counts: the statistics.
    """
    tokenizer, length, padding = self.encoder
    before, after = around
    room = length - len(before) - len(after)
    sizes = np.array([part.stop - part.start for text in words
                      for part in words_lib.cut(text, room)], int)
    rows = np.empty(len(sizes), self.recipe().dtype)
    rows['tokens'], rows['words'] = text_tokenizers.pad_id(tokenizer), _PADDING
    counts['tokens'] += int(sizes.sum()) + len(rows) * (length - room)
    # The index of each row's first token, in the row and in `ids`.
    begins = (room - sizes if padding == 'left' else 0 * sizes) + len(before)
    firsts = np.cumsum(sizes) - sizes
    row = np.repeat(np.arange(len(rows)), sizes)
    column = np.arange(len(ids)) + (begins - firsts)[row]
    rows['tokens'][row, column] = ids
    # Numbers from 1, up to the number of tokens.
    number = np.concatenate([np.zeros(0, int), *words])
    rows['words'][row, column] = np.where(
        is_special[ids], 0, number - number[firsts][row] + 1)
    for affix, starts in ((before, begins - len(before)),
                          (after, begins + sizes)):
      place = np.arange(len(rows))[:, None], starts[:, None] + np.arange(
          len(affix))
      rows['tokens'][place], rows['words'][place] = affix, 0
    return rows

  def _full_ids(self, batches: shards.Batches) -> Iterator[np.ndarray]:
    for batch in batches:
      yield from self.encoder.full_ids(
          text_records.texts_of(batch, self.field, Counter()))

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    words = rows['words']
    return dict(tokens=rows['tokens'], mask=words != _PADDING, words=words)

  def vary(self, columns: Mapping[str, np.ndarray],
           rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
    """Chooses words, and hides what is chosen."""
    tokens, words = columns['tokens'], columns['words']
    tokenizer, length, _ = self.encoder
    draws = np.stack([rng.random((3, length)) for rng in rngs])
    of_word = np.take_along_axis(draws[:, 0], np.maximum(words - 1, 0), axis=1)
    chosen = (words > 0) & (of_word < self.rate)
    # What becomes of a token matters only where it is chosen.
    place = np.nonzero(chosen)
    what, which = draws[:, 1][place], draws[:, 2][place]
    other = (which * tokenizer.size).astype(tokens.dtype)
    hidden = np.where(what < _MASKED + _RANDOM, other, tokens[place])
    hidden = np.where(what < _MASKED, _mask_id(tokenizer), hidden)
    inputs = tokens.copy()
    inputs[place] = hidden
    return dict(
        tokens=inputs,
        mask=columns['mask'],
        label=np.where(chosen, tokens, base.IGNORED_LABEL),
        target_mask=chosen)


def _masked_spec(*, tokenizer, length, rate=0.15, vocabulary=None, prune=False,
                 **options):
  del options
  if prune:
    return None  # Only the data says which tokens are kept.
  loaded = text_tokenizers.load(tokenizer)
  _check_options(sentence_rows.SentenceEncoder(loaded, length, 'right'), rate)
  return spec_lib.Spec(
      tokens_lib.columns(length),
      text_tokenizers.vocabulary_size(loaded, vocabulary))


@registry.register_dataset(spec=_masked_spec, tasks=('masked_lm',))
def masked_text(split: str,
                *,
                tokenizer: str,
                length: int,
                rate: float = 0.15,
                field: str = 'text',
                documents: str = 'file',
                padding: str = 'right',
                vocabulary: Optional[int] = None,
                prune: bool = False,
                tfds: Optional[str] = None,
                source_dir: Optional[str] = None,
                data_dir: Optional[str] = None,
                reading: reading_lib.Reading = reading_lib.Reading()
                ) -> source.Source:
  """Documents for a masked language model, which predicts hidden words.

  Files are as for `text`. A row is one document between the special tokens of
  its tokenizer, as encoders know it; rows are padded, not packed. A longer
  document is cut between words into several rows, each between special tokens.

  In each epoch, every word is chosen anew with probability `rate`, all of its
  tokens together; special tokens never are. Each token of a chosen word is a
  target. In the input it becomes the mask token with probability 0.8, a token
  drawn evenly from the vocabulary with 0.1, and stays as it is otherwise. As in
  BERT's own code and in transformers, these draws are made token by token, and
  may give a special token.

  The choice depends on the seed, the epoch and the example; not on the batch,
  the devices or restarts. In evaluation it depends on the example alone.

  Args:
    split: 'train', 'validation' or another split of the data set, or a slice of
      one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it; it has a mask
      token.
    length: N, the number of tokens in a row.
    rate: the probability with which a word is chosen, between 0 and 1.
    field: the field of the text.
    documents: what a document is in `.txt` files, as for `text`.
    padding: the side of the padding, 'right' or 'left'.
    vocabulary: as for `text`; words are never replaced by tokens beyond those
      of the tokenizer.
    prune: as for `text`.
    tfds: the name of the data set in tfds; it must be prepared in `data_dir`.
    source_dir: the folder of the files.
    data_dir: the folder of prepared files; None for that of tfds.
    reading: the limits of its files, and what is done about broken records.

  Returns:
    A Source of `tokens`, `mask`, `label`, the token that was there before, and
    `target_mask`, which is true where a word is chosen.

  Raises:
    ConfigError: an option out of its range, or `prune` with `vocabulary`.
    DataError: files or a tokenizer that cannot be used, or an unknown or empty
      split.

  References:
    BERT: Devlin et al., arXiv:1810.04805, section 3.1. Whole words:
    github.com/google-research/bert, create_pretraining_data.py.
  """
  text_tokenizers.check_pruning(prune, vocabulary)
  location = text_files.Location(
      source_dir, data_dir, tfds, documents, field, ((field,),),
      reading=reading)

  def make_format(
      loaded: tokenizer_lib.Tokenizer,
      corpus: text_files.Corpus) -> text_prepared.RowFormat:
    del corpus
    encoder = sentence_rows.SentenceEncoder(loaded, length, padding)
    _check_options(encoder, rate)
    return _MaskedText(encoder, field, rate)

  return text_prepared.open_rows(
      make_format, tokenizer, location, split, prune=prune,
      num_classes=lambda loaded: text_tokenizers.vocabulary_size(
          loaded, vocabulary))


def _check_options(encoder, rate):
  """Refuses options out of their range, and a tokenizer that can't mask."""
  _mask_id(encoder.tokenizer)
  around = sum(map(len, affixes.of(encoder.tokenizer)))
  packing.check_options(encoder.length, encoder.padding, min_length=around + 1)
  if not 0 < rate < 1:
    raise checks.ConfigError(
        f'config.data.options.rate must lie between 0 and 1; got {rate}. BERT '
        'has 0.15.')


def _mask_id(tokenizer: tokenizer_lib.Tokenizer) -> int:
  """Returns the mask token; raises DataError if there is none."""
  mask = tokenizer.special.mask
  if mask is None:
    raise checks.DataError(
        'config.data.options.tokenizer must have a mask token; got '
        f'{tokenizer.special}. Name it in tokenizer_config.json as mask_token, '
        'or choose a network that was trained with one.')
  return mask
