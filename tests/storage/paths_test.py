"""Paths: how a bucket differs from a local folder.

A fake bucket replaces epath's: a dict that records writes and can be made to
fail. `bucket_test.py` runs a job against a fake server.
"""

import os
import pathlib

import numpy as np
import pytest

from haikd.core import checks
from haikd.run import workdir
from haikd.run import writer
from haikd.storage import checkpointer as checkpointer_lib
from haikd.storage import paths
from haikd.storage import publishing
from haikd.storage import step_folder


class FakePath(pathlib.PurePosixPath):
  """A path in a bucket in memory, with the methods of epath that haikd uses."""

  objects = {}
  writes = []
  failure = None

  @classmethod
  def _answer(cls):
    if cls.failure:
      raise cls.failure

  def __fspath__(self):
    return 'gs://' + super().__str__().removeprefix('gs:/')

  __str__ = __fspath__

  def iterdir(self):
    self._answer()
    prefix = f'{self}/'
    inside = [name for name in self.objects if name.startswith(prefix)]
    if not inside:
      raise FileNotFoundError(str(self))
    for name in {name.removeprefix(prefix).split('/')[0] for name in inside}:
      yield self / name

  def read_bytes(self):
    self._answer()
    if str(self) not in self.objects:
      raise FileNotFoundError(str(self))
    return self.objects[str(self)]

  def write_bytes(self, content):
    self._answer()
    self.objects[str(self)] = content
    self.writes.append(self.name)

  def unlink(self, missing_ok):
    assert missing_ok
    self.objects.pop(str(self), None)

  def rmtree(self, missing_ok):
    assert missing_ok
    for name in [x for x in self.objects if x.startswith(f'{self}/')]:
      del self.objects[name]


@pytest.fixture
def bucket(monkeypatch):
  """Returns the class of paths in an empty bucket."""
  monkeypatch.setattr(FakePath, 'objects', {})
  monkeypatch.setattr(FakePath, 'writes', [])
  monkeypatch.setattr(FakePath, 'failure', None)
  monkeypatch.setattr(paths, '_epath', lambda: FakePath)
  return FakePath


@pytest.fixture
def clock(monkeypatch):
  """Returns a list whose only entry is the time."""
  now = [1000.0]
  monkeypatch.setattr(paths.time, 'monotonic', lambda: now[0])
  return now


def test_both_slashes_of_a_bucket_survive():
  pytest.importorskip('gcsfs')
  path = paths.as_path('gs://bucket/run') / 'teacher'
  assert str(path) == os.fspath(path) == 'gs://bucket/run/teacher'
  assert str(paths.absolute(path)) == 'gs://bucket/run/teacher'
  assert str(paths.as_path(path) / '') == 'gs://bucket/run/teacher'
  assert path.name == 'teacher' and str(path.parent) == 'gs://bucket/run'


def test_files_and_missing_folders_have_no_entries(tmp_path):
  (tmp_path / 'file').write_text('x')
  assert paths.names(tmp_path) == ['file']
  assert not paths.names(tmp_path / 'file')
  assert not paths.names(tmp_path / 'none')


def test_a_local_path_is_pathlibs():
  assert paths.as_path('runs/x') == pathlib.Path('runs/x')
  assert paths.absolute('x') == pathlib.Path.cwd() / 'x'


def test_missing_gcsfs_is_named(monkeypatch):
  paths._epath.cache_clear()
  monkeypatch.setattr(paths.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
      checks.DataError,
      match=r"^gcsfs must be installed .* `pip install 'haikd\[gcs"):
    paths.as_path('gs://bucket/run')


@pytest.mark.parametrize('path', ['s3://bucket/run', 'http://host/run'])
def test_other_urls_are_refused(path):
  with pytest.raises(
      checks.ConfigError,
      match='must be a local path or begin with gs://; got .*://. Mount'):
    paths.as_path(path)


@pytest.mark.parametrize('use', [
    paths.names,
    paths.exists,
    paths.read,
    lambda path: paths.replace(path, b'new'),
    lambda path: step_folder.find(paths.as_path(path)),
])
def test_a_bucket_that_cannot_be_reached_is_not_an_empty_one(bucket, use):
  bucket.objects['gs://b/run/file'] = b'old'
  bucket.failure = RuntimeError('no route to host')
  with pytest.raises(checks.DataError,
                     match='^bucket must exist and be open to you; got '
                     'path=gs://b/.*RuntimeError: no route to host'):
    use('gs://b/run/file')
  assert bucket.objects == {'gs://b/run/file': b'old'}


def test_writing_to_a_missing_bucket_is_a_data_error(bucket):
  bucket.failure = FileNotFoundError('no such bucket')
  with pytest.raises(checks.DataError, match='got path=gs://b/run/file'):
    paths.replace('gs://b/run/file', b'new')


def test_temporary_names_are_hidden_and_never_the_same(tmp_path):
  hidden = {paths.temporary(tmp_path / 'file') for _ in range(100)}
  assert len(hidden) == 100
  assert all(path.parent == tmp_path and path.name.startswith('.file.')
             for path in hidden)


def test_failed_replacement_leaves_the_old_content_alone(tmp_path, monkeypatch):
  (tmp_path / 'file').write_bytes(b'old')

  def full(number):
    del number
    raise OSError('no room')

  monkeypatch.setattr(paths.os, 'fsync', full)
  with pytest.raises(OSError, match='no room'):
    paths.replace(tmp_path / 'file', b'new')
  assert [p.read_bytes() for p in tmp_path.iterdir()] == [b'old']


def test_existing_and_missing_objects(bucket):
  paths.replace('gs://b/run/part/file', b'content')
  assert paths.names('gs://b/run') == ['part']
  assert paths.exists('gs://b/run/part/file')
  assert not paths.exists('gs://b/run/file')
  assert not paths.names('gs://b/other')
  assert paths.read('gs://b/run/part/file') == b'content'
  with pytest.raises(FileNotFoundError):
    paths.read('gs://b/run/file')


@pytest.mark.parametrize('names, newest', [
    (['7/state/x', '7/metadata/x', '7/commit_success.txt'], '7'),
    (['7/state/x', '7/metadata/x', '7/commit_success.txt', '14/state/x',
      '14/metadata/x'], '7'),
    (['9/state/x', '9/metadata/x', '9/commit_success.txt', '14/state/x',
      '14/metadata/x', '14/commit_success.txt'], '14'),
    (['7/state/x', '7/metadata/x', '7/state/commit_success.txt'], None),
    (['7/commit_success.txt'], None),
    # Copied there from a disk: as a whole, and in part.
    (['7/state/x', '7/metadata/x', '7/checksums.json'], '7'),
    (['7/state/x', '7/checksums.json'], None),
    (['7/metadata/x', '7/checksums.json'], None),
    (['7/checksums.json'], None),
    ([], None),
])
def test_a_checkpoint_in_a_bucket_is_complete_once_it_says_so(
    bucket, names, newest):
  bucket.objects.update((f'gs://b/run/{name}', b'') for name in names)
  folder = step_folder.find(bucket('gs://b/run'))
  assert (folder and folder.name) == newest


THEIRS = {f'gs://b/run/checkpoints/{name}' for name in (
    '5/results.csv', '6/state/x', '6/notes', '7/checksums.json', '7/state/x',
    'notes/x')}


def test_a_start_removes_from_a_bucket_only_what_kills_left(bucket, caplog):
  left = {f'gs://b/run/checkpoints/{name}' for name in (
      '1/state/x', '2/state.orbax-checkpoint-tmp/x', '3/state/x',
      '3/metadata/metadata', '4/amended.json', '4/metadata/metadata')}
  complete = {f'gs://b/run/checkpoints/8/{name}' for name in (
      'state/x', 'metadata/metadata', 'commit_success.txt')}
  bucket.objects.update(dict.fromkeys(left | complete | THEIRS, b''))
  with caplog.at_level('INFO', 'haikd'), checkpointer_lib.Checkpointer(
      'gs://b/run', keep=1) as checkpointer:
    assert checkpointer.latest_step() == 8
  assert set(bucket.objects) == complete | THEIRS
  assert [x.getMessage() for x in caplog.records if x.name == 'haikd'] == [
      f'gs://b/run/checkpoints/{name} is left alone, since this run did not '
      'write it.' for name in ('5', '6', '7', 'notes')]


def test_a_save_into_a_bucket_that_fails_removes_nothing_of_others(
    bucket, monkeypatch):
  bucket.objects.update(dict.fromkeys(THEIRS, b''))
  before = dict(bucket.objects)
  with checkpointer_lib.Checkpointer(
      'gs://b/run', keep=1, go_on=True) as checkpointer:
    checkpointer.save(5, dict(x=np.ones(3)), {}, {})
    assert bucket.objects == before
    with monkeypatch.context() as patch:
      patch.setattr(publishing, 'publish', fail)
      checkpointer.save(8, dict(x=np.ones(3)), {}, {})
      checkpointer.wait()
    assert bucket.objects == before
    checkpointer.save(9, dict(x=np.ones(3)), {}, {})
    checkpointer.wait()
    assert checkpointer.latest_step() == 9
    checkpointer.save(10, dict(x=np.ones(3)), {}, {})
  assert set(bucket.objects) == THEIRS | {
      f'gs://b/run/checkpoints/10/{name}' for name in (
          'state/leaves.safetensors', 'metadata/metadata',
          'commit_success.txt')}


def fail(*unused):
  raise OSError('no route to host')


def test_a_bucket_is_not_locked(bucket):
  with workdir.lock('gs://b/run'), workdir.lock('gs://b/run'):
    assert not bucket.objects


def test_staging_of_a_local_folder_is_the_folder(tmp_path):
  staging = paths.Staging(tmp_path / 'run')
  assert staging.folder == tmp_path / 'run'
  (staging.folder / 'file').write_text('x')
  staging.flush()
  staging.close()
  assert [path.name for path in (tmp_path / 'run').iterdir()] == ['file']


def test_staging_uploads_what_has_changed_when_it_is_due(bucket, clock):
  staging = paths.Staging('gs://b/run')
  grows, stays = staging.folder / 'grows', staging.folder / 'stays'
  stays.write_text('s')
  grows.write_text('1')
  staging.flush_if_due()
  assert not bucket.writes
  clock[0] += 30
  staging.flush_if_due()
  assert bucket.writes == ['grows', 'stays']
  grows.write_text('12')
  clock[0] += 29
  staging.flush_if_due()
  assert bucket.writes == ['grows', 'stays']
  clock[0] += 1
  staging.flush_if_due()
  assert bucket.writes == ['grows', 'stays', 'grows']
  assert bucket.objects['gs://b/run/grows'] == b'12'


def test_staging_sees_a_file_of_the_same_size_that_has_changed(bucket):
  staging = paths.Staging('gs://b/run')
  path, other = staging.folder / 'file', staging.folder / 'other'
  path.write_text('1')
  staging.flush()
  path.write_text('2')
  os.utime(path, ns=(5, 5))
  staging.flush()
  assert bucket.objects == {'gs://b/run/file': b'2'}
  other.write_text('3')  # Replaces the file, with the same time and size.
  os.utime(other, ns=(5, 5))
  os.replace(other, path)
  staging.flush()
  assert bucket.objects == {'gs://b/run/file': b'3'}
  staging.close()


def test_staging_takes_a_twentieth_of_the_time(bucket, clock, monkeypatch):
  write = bucket.write_bytes

  def slow(self, content):
    clock[0] += 3
    write(self, content)

  monkeypatch.setattr(bucket, 'write_bytes', slow)
  staging = paths.Staging('gs://b/run')
  (staging.folder / 'file').write_text('1')
  staging.flush()
  (staging.folder / 'file').write_text('12')
  clock[0] += 59  # An upload of three seconds is due again after sixty.
  staging.flush_if_due()
  assert bucket.writes == ['file']
  clock[0] += 1
  staging.flush_if_due()
  assert bucket.writes == ['file', 'file']


def test_staging_continues_known_files_and_cleans_up(bucket):
  bucket.objects['gs://b/run/known'] = b'1'
  bucket.objects['gs://b/run/other'] = b'x'
  staging = paths.Staging('gs://b/run', known=('known', 'missing'))
  assert [p.name for p in staging.folder.iterdir()] == ['known']
  with open(staging.folder / 'known', 'a', encoding='utf-8') as file:
    file.write('2')
  staging.close()
  assert not staging.folder.exists()
  assert bucket.objects == {'gs://b/run/known': b'12', 'gs://b/run/other': b'x'}


def test_staging_uploads_no_unchanged_file(bucket):
  bucket.objects['gs://b/run/known'] = b'1'
  paths.Staging('gs://b/run', known=('known',)).close()
  assert not bucket.writes


def test_staging_cleans_up_if_the_upload_fails(bucket):
  staging = paths.Staging('gs://b/run')
  (staging.folder / 'file').write_text('1')
  bucket.failure = RuntimeError('no route to host')
  with pytest.raises(checks.DataError, match='no route to host'):
    staging.close()
  assert not staging.folder.exists()


def steps(bucket):
  lines = bucket.objects['gs://b/run/metrics.jsonl'].decode().splitlines()
  return [writer.files.json.loads(line)['step'] for line in lines]


def test_rows_reach_a_bucket_before_a_checkpoint_and_a_killed_run_goes_on(
    bucket):
  out = writer.open_writer('gs://b/run', total_steps=9)
  out.truncate(0)
  for step in (1, 2, 3):
    out.write(step, 'train', {'loss': 1.0})
    if step == 2:
      out.flush()  # For a checkpoint at 2; the run is killed after 3.
  assert steps(bucket) == [1, 2]
  with writer.open_writer('gs://b/run', total_steps=9) as out:
    out.truncate(2)
    out.write(3, 'train', {'loss': 1.0})
  assert steps(bucket) == [1, 2, 3]
  events = [name for name in bucket.objects if 'tfevents' in name]
  assert len(events) == 2 and all(bucket.objects[name] for name in events)
