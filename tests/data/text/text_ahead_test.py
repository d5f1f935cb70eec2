"""Training that begins while its texts are still being prepared."""

from concurrent import futures
import json
import threading

import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.data import orders
from haikd.data import pipeline
from haikd.data.text import shards
from haikd.data.text import text_prepared


@pytest.fixture
def config(tmp_path, monkeypatch, words):
  """Thirty documents of two letters, one a row, four to a shard."""
  monkeypatch.setattr(shards, 'BATCH_CHARACTERS', 4)
  monkeypatch.setattr(shards, 'SHARD_CHARACTERS', 8)
  for split, count in (('train', 30), ('validation', 5)):
    (tmp_path / f'{split}.jsonl').write_text(''.join(
        json.dumps(dict(text=f'{"abcdefghij"[i % 10]} {"abc"[i // 10]}')) + '\n'
        for i in range(count)))
  made = config_lib.base()
  made.batch_size = 6
  made.evaluation.final = 'validation'
  made.data.name, made.data.source_dir = 'text', str(tmp_path)
  made.data.data_dir = str(tmp_path / 'data')
  made.data.options = dict(tokenizer=words, length=3, form='padded',
                           prepare='ahead')
  return made


@pytest.fixture
def gate(monkeypatch):
  """Lets shards be written one by one, as `release` is called."""
  allowed, write = threading.Semaphore(0), shards._write_shard

  def slow(shard, *args):
    if not allowed.acquire(timeout=30):
      raise TimeoutError
    return write(shard, *args)

  monkeypatch.setattr(shards, '_write_shard', slow)
  return allowed


def build(config):
  return pipeline.build_data(config, process_index=0, process_count=1)


def take(iterator, count):
  return [next(iterator).inputs.tolist() for _ in range(count)]


def test_first_batches_need_the_first_shards_only(config, gate):
  config.data.prefetch = 1
  gate.release(2 + 1)  # One reads ahead.
  data = build(config)
  first = take(data.train(), 1)
  text = data.splits.reader('train', '')._source
  assert not text.is_complete and len(text._shards) <= 3
  gate.release(20)
  whole = take(build(config).train(), 12)
  assert whole[0] == first[0]


def test_order_is_the_same_when_all_is_there_and_after_a_resume(config):
  data = build(config)
  iterator = data.train()
  growing = take(iterator, 7)
  state = iterator.get_state()
  growing += take(iterator, 5)
  assert data.splits.reader('train', '')._source.is_complete
  whole = build(config)
  assert take(whole.train(), 12) == growing
  resumed = whole.train()
  resumed.set_state(state)
  assert take(resumed, 5) == growing[7:]
  rows = [tuple(row) for batch in growing for row in batch]
  # Two epochs of 30 rows and a part of the third; none is seen twice in one.
  assert len({*rows[:30]}) == len({*rows[30:60]}) == 30
  assert rows[:30] != rows[30:60]
  data.check()
  assert data.sizes == dict(train=30, validation=5)
  seen = sum(int(batch.mask.any(1).sum()) for batch in data.evaluation(
      'validation'))
  assert seen == 5


def test_many_threads_see_the_same_shards(config):
  take(build(config).train(), 6)
  for _ in range(20):
    text = build(config).splits.reader('train', '')._source
    with futures.ThreadPoolExecutor(8) as pool:
      sizes = list(pool.map(lambda _: len(text), range(8)))
    assert sizes == [30] * 8


def test_bad_line_ends_the_training_that_reaches_it(config, tmp_path):
  with open(tmp_path / 'train.jsonl', 'a') as file:
    file.write('{"text": 3}\n')
  iterator = build(config).train()
  take(iterator, 2)
  with pytest.raises(checks.DataError, match='line 31 of .* must have a text'):
    take(iterator, 9)


@pytest.mark.parametrize('content, error, text', [
    ('', checks.DataError, "Split 'train' must hold texts; got none"),
    ('{"text": "a"}\n', checks.DataError, "got 'train' of size=1"),
])
def test_split_that_is_too_small_is_refused(config, tmp_path, content, error,
                                            text):
  (tmp_path / 'train.jsonl').write_text(content)
  for _ in range(2):  # While it is prepared, and afterwards.
    with pytest.raises(error, match=text):
      build(config).check()


@pytest.mark.parametrize('options, text', [
    (dict(prepare='later'), "prepare must be 'first' or 'ahead'; got 'later'"),
    (dict(prune=True), "prepare must be 'first' with prune=True"),
])
def test_options_that_do_not_fit_are_refused(config, options, text):
  config.data.options.update(options)
  with pytest.raises(checks.ConfigError, match=f'config.data.options.{text}'):
    build(config).check()


def test_slice_and_index_of_a_growing_split(config):
  config.data.train = 'train[:12]'  # Waits, and is read as any other.
  assert build(config).sizes['train[:12]'] == 12
  config.data.train = 'train'
  text = build(config).splits.reader('train', '')._source
  assert text[29]['tokens'][0] == 12  # j
  with pytest.raises(IndexError, match='row 30 of 30'):
    text[30]


def test_rows_of_a_shard_are_read_at_once(config, monkeypatch):
  reads = []

  class Recorded:

    def __init__(self, rows):
      self._rows = rows

    def __getitem__(self, index):
      return self.__getitems__([index])[0]

    def __getitems__(self, indices):
      reads.append(indices)
      return self._rows.__getitems__(indices)

  open_shard = shards.open_shard
  monkeypatch.setattr(shards, 'open_shard',
                      lambda *args: Recorded(open_shard(*args)))
  text = build(config).splits.reader('train', '')._source
  rows = text.__getitems__([9, 0, 2, 29, 8, 0])
  # In `words`, a is 3; the second letter is that of the ten.
  assert [row['tokens'].tolist()[:2] for row in rows] == [
      [12, 3], [3, 3], [5, 3], [12, 5], [11, 3], [3, 3]]
  assert sorted(map(sorted, reads)) == [[0, 0, 2], [0, 1], [1]]


def test_rows_of_a_block_precede_those_of_the_next():
  blocks = [range(0, 5), range(5, 5), range(5, 9), range(9, 12)]
  asked = []

  def block(number):
    asked.append(number)
    return blocks[number] if number < len(blocks) else None

  order = orders.Growing(block, batch_size=4, seed=0)
  first = [order.batch(0).indices]
  assert max(asked) == 0  # Four of its five rows.
  drawn = np.concatenate(
      first + [order.batch(i).indices for i in (1, 2, 3, 4, 5)])
  assert sorted(drawn[:5]) == [*range(5)]
  assert sorted(drawn[5:9]) == [*range(5, 9)]
  assert sorted(drawn[9:12]) == [*range(9, 12)]
  assert sorted(drawn[12:24]) == [*range(12)]
  later = orders.Shuffled(12, batch_size=4, seed=0)
  np.testing.assert_array_equal(drawn[12:16], later.batch(3).indices)


def test_preparation_shows_no_bar_beside_that_of_training(config, monkeypatch):

  def no_bar(title):
    raise AssertionError(title)

  monkeypatch.setattr(text_prepared, '_progress_bar', no_bar)
  take(build(config).train(), 1)
