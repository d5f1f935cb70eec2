"""Texts in a bucket: as on disk, from a file system in memory.

`tests/storage/bucket_test.py` has a real client and a fake server.
"""

import gzip
import json

import pyarrow
from pyarrow import parquet
import pytest

from haikd.core import checks
from haikd.data.text import text_files
from haikd.storage import inputs


def open_corpus(source_dir, cache):
  return text_files.open_corpus(
      text_files.Location(str(source_dir), None, None, 'line', 'text'),
      'train', cache)


ROWS = [[dict(text=f'{shard} é {i}') for i in range(300)] for shard in range(7)]


def write_lines(folder):
  for i, rows in enumerate(ROWS):
    (folder / f'train-{i:05d}-of-00007.jsonl').write_text(
        ''.join(f'{json.dumps(row)}\n' for row in rows))


def write_compressed(folder):
  (folder / 'train').mkdir()
  for i, rows in enumerate(ROWS):
    (folder / 'train' / f'{i}.txt.gz').write_bytes(gzip.compress(
        ''.join(f'{row["text"]}\n' for row in rows).encode()))


def write_parquet(folder):
  for i, rows in enumerate(ROWS):
    parquet.write_table(pyarrow.Table.from_pylist(rows),
                        folder / f'train-{i}-of-7.parquet')


def write_arrow(folder):
  """Writes a folder as `DatasetDict.save_to_disk` does."""
  (folder / 'train').mkdir()
  names = [f'data-{i:05d}-of-00007.arrow' for i in range(7)]
  for name, rows in zip(names, ROWS):
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(str(folder / 'train' / name),
                                table.schema) as writer:
      writer.write_table(table)
  (folder / 'train' / 'state.json').write_text(json.dumps(dict(
      _data_files=[dict(filename=name) for name in names])))


@pytest.mark.parametrize('write', [write_lines, write_compressed, write_parquet,
                                   write_arrow])
def test_texts_in_a_bucket_are_those_on_disk(tmp_path, buckets, write):
  folder = tmp_path / 'files'
  folder.mkdir()
  write(folder)
  address = buckets.upload(folder, 'gs://bucket/texts')
  local = [*open_corpus(folder, tmp_path).records()]
  remote = [*open_corpus(address, tmp_path).records()]
  assert [record.values for record in remote] == sum(ROWS, [])
  assert [record._replace(place=record.place.replace(address, str(folder)),
                          broken=None) for record in remote] == [
                              record._replace(broken=None) for record in local]


def test_digest_is_that_of_the_content(tmp_path, buckets):
  buckets().pipe_file('gs://bucket/a/train.txt', b'a')
  buckets().pipe_file('gs://bucket/b/train.txt', b'a')
  first = open_corpus('gs://bucket/a', tmp_path).digest
  assert open_corpus('gs://bucket/b/', tmp_path).digest == first
  buckets().pipe_file('gs://bucket/b/train.txt', b'b')
  assert open_corpus('gs://bucket/b', tmp_path).digest != first


def test_missing_split_is_named_with_what_is_there(tmp_path, buckets):
  buckets().pipe_file('gs://bucket/a/data/train.txt', b'a')
  with pytest.raises(checks.DataError, match="Split 'train' must be a file or "
                     "folder in 'gs://bucket/a'; got neither. Set "
                     "config.data.source_dir to 'gs://bucket/a/data'"):
    open_corpus('gs://bucket/a', tmp_path)
  assert not inputs.entries('gs://bucket/b')


@pytest.mark.parametrize('healthy', range(4))
def test_bucket_that_fails_is_named(tmp_path, buckets, healthy):
  buckets().pipe_file('gs://bucket/a/train.txt', b'a')
  buckets.failure, buckets.healthy = PermissionError('no credentials'), healthy
  with pytest.raises(checks.DataError, match='bucket must exist and be open to '
                     r'you; got path=gs://bucket/a.*no credentials.*Check its '
                     'name, .* `gcloud auth application-default login`'):
    list(open_corpus('gs://bucket/a', tmp_path).records())


def test_spoilt_record_is_named_by_its_object(tmp_path, buckets):
  for i, content in enumerate((b'{}\n' * 999, b'{}\n[', b'{}\n' * 999)):
    buckets().pipe_file(f'gs://bucket/train/{i}.jsonl', content)
  with pytest.raises(checks.DataError,
                     match="line 2 of 'gs://bucket/train/1.jsonl'"):
    list(open_corpus('gs://bucket', tmp_path).records())


def test_job_with_everything_in_a_bucket(
    run, tmp_path, buckets, words, write_language_model):
  del words  # A folder beside the texts.
  (tmp_path / 'texts').mkdir()
  for split in ('train', 'validation', 'test'):
    for i in range(2):
      (tmp_path / 'texts' / f'{split}-{i}-of-2.jsonl').write_text(
          '{"text": "a b c d e f g h i j"}\n' * 20)
  for name in ('texts', 'words'):
    buckets.upload(tmp_path / name, f'gs://bucket/{name}')
  write_language_model(
      'bucket.py', name='text', source_dir='gs://bucket/texts',
      data_dir=str(tmp_path / 'data'),
      options=dict(tokenizer='gs://bucket/words', length=8))
  code, out, err = run(config='bucket.py')
  assert code == 0, err
  assert 'perplexity' in out
