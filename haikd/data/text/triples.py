"""Queries with a text that answers them and others that do not."""

from collections import Counter
from collections.abc import Iterator, Mapping
import itertools
from typing import NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data.text import candidates
from haikd.data.text import sentence_rows
from haikd.data.text import shards
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_records
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import two_tokenizations

_SURPLUS, _LONELY = 'surplus', 'lonely'  # Statistics of records.


class _Triples(NamedTuple):
  """How a query, its candidates and their scores become a row."""

  encoder: sentence_rows.SentenceEncoder
  fields: candidates.Fields
  num_negatives: int
  prompts: tuple[str, str]

  def recipe(self) -> shards.Recipe:
    texts = self.num_negatives + 2
    shape = (texts, self.encoder.length)
    columns: list[tuple[str, str, tuple[int, ...]]] = [
        ('tokens', '<i4', shape), ('mask', '?', shape)]
    if self._has_scores:
      columns.append(('label', '<f4', (texts - 1,)))
    # The order of `fields` is part of the cache key.
    return shards.Recipe(
        'triples', dict(self.encoder.options(), fields=(
            *self.fields, self.num_negatives, *self.prompts)),
        np.dtype(columns), self._rows, self._full_ids, {
            **self.encoder.notices(),
            _SURPLUS: 'have more than config.data.options.num_negatives='
                      f'{self.num_negatives}, of which the first are used.',
            _LONELY: 'have no negative; losses on scores leave them out.'})

  @property
  def _has_scores(self):
    return bool(self.fields.scores or self.fields.margins)

  def _rows(self, batches: shards.Batches,
            counts: Counter) -> Iterator[np.ndarray]:
    for batch in batches:
      found = self._read(batch, counts)
      encoded = self.encoder.encode(
          [text for x in found for text in self._texts(x)], counts)
      for x in found:
        negatives = len(x.texts) - 1
        counts[_SURPLUS] += negatives > self.num_negatives
        counts[_LONELY] += not negatives
        yield self._row(x, encoded)

  def _row(self, found, encoded):
    """Returns a row; takes as many texts from `encoded` as it has."""
    # Rows of texts that are missing are all padding.
    row = np.zeros((), self.recipe().dtype)
    number = len(self._texts(found))
    for i, (tokens, _, mask) in enumerate(itertools.islice(encoded, number)):
      row['tokens'][i], row['mask'][i] = tokens, mask
    if self._has_scores:
      row['label'][:number - 1] = found.scores[:number - 1]
    return row

  def _texts(self, found: candidates.Candidates) -> list[str]:
    """Returns the query and the candidates that have room, with prompts."""
    of_query, of_document = self.prompts
    texts = found.texts[:self.num_negatives + 1]
    return [of_query + found.query, *(of_document + x for x in texts)]

  def _full_ids(self, batches: shards.Batches) -> Iterator[np.ndarray]:
    for batch in batches:
      yield from self.encoder.full_ids([
          text for found in self._read(batch, Counter())
          for text in self._texts(found)])

  def _read(self, batch, counts) -> list[candidates.Candidates]:
    """Returns what records say that can be used."""
    return [found for _, found in text_records.usable(
        batch, self.fields.read, counts)]

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    return {key: rows[key] for key in rows.dtype.names or ()}


@registry.register_dataset(tasks=('embedding',))
def triples(split: str,
            *,
            tokenizer: str,
            student_tokenizer: Optional[str] = None,
            length: int,
            num_negatives: int,
            query: str = 'query',
            positive: str = 'positive',
            negatives: candidates.Names = None,
            scores: candidates.Names = None,
            margins: candidates.Names = None,
            query_prompt: str = '',
            document_prompt: str = '',
            padding: str = 'right',
            prune: bool = False,
            tfds: Optional[str] = None,
            source_dir: Optional[str] = None,
            data_dir: Optional[str] = None,
            reading: reading_lib.Reading = reading_lib.Reading()
            ) -> source.Source:
  """Queries, each with a positive, negatives and a teacher's scores of them.

  Files are as for `text`, of the kinds that have fields. The first record of a
  split decides which fields are used where an option is None.

  Args:
    split: 'train', 'validation' or another split of the data set, or a slice of
      one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it.
    student_tokenizer: that of the student, as for `sentences`.
    length: N, the number of tokens in a row, for each text.
    num_negatives: how many negatives an example has, the first ones of a
      record. Records with fewer are padded with texts that do not count.
    query: the field of the query.
    positive: the field of the text that answers it, or of a list with one.
    negatives: the field of a text or a list of texts that do not, or several
      such fields; None for `negatives`, `negative` or `negative_1`,
      `negative_2` and so on. Null, and an empty cell of CSV, is no text.
    scores: the field of a teacher's scores, such as a cross-encoder's: a list
      with that of the positive and those of the negatives, or several fields of
      numbers or lists in this order. None for `scores`, `labels`, `score` or
      `label` if there is one; () to use none.
    margins: in place of scores, the field or fields of the score of the
      positive less that of each negative. Losses depend on these differences
      alone, so the positive gets the score 0 and a negative 0 less its margin.
    query_prompt: what precedes every query, such as 'query: '.
    document_prompt: what precedes every other text.
    padding: the side of the padding, 'right' or 'left'.
    prune: as for `text`.
    tfds: the name of the data set in tfds; it must be prepared in `data_dir`.
    source_dir: the folder of the files.
    data_dir: the folder of prepared files; None for that of tfds.
    reading: the limits of its files, and what is done about broken records.

  Returns:
    A Source of `tokens` and `mask`, `[S, N]` for S = num_negatives + 2 texts,
    the query and the positive first. With scores also of `label`, `[S - 1]`
    float32. There are no classes. With `student_tokenizer` also of
    `student/tokens` and `student/mask`.

  Raises:
    ConfigError: an option out of its range.
    DataError: files or a tokenizer that cannot be used, an unknown or empty
      split, or a text without a score where others have one.
  """
  if type(num_negatives) is not int or num_negatives < 1:
    raise checks.ConfigError(
        'config.data.options.num_negatives must be a positive int; got '
        f'{num_negatives!r}.')
  location = text_files.Location(
      source_dir, data_dir, tfds, 'file', query, reading=reading)

  def make_format(
      loaded: tokenizer_lib.Tokenizer,
      corpus: text_files.Corpus) -> text_prepared.RowFormat:
    encoder = sentence_rows.SentenceEncoder(loaded, length, padding)
    encoder.check_options()
    fields = text_files.read_first(corpus, lambda record: candidates.find(
        record, query=query, positive=positive, negatives=negatives,
        scores=scores, margins=margins))
    return _Triples(encoder, fields, num_negatives,
                    (query_prompt, document_prompt))

  return two_tokenizations.open_rows(
      lambda path: text_prepared.open_rows(
          make_format, path, location, split, prune=prune,
          num_classes=lambda loaded: None),
      tokenizer, student_tokenizer)
