"""Kills while checkpoints are written, amended and removed."""

import errno
import json
import os
import shutil

import jax.numpy as jnp
import pytest
import safetensors.numpy

from haikd.core import base
from haikd.core import checks
from haikd.storage import checkpoint
from haikd.storage import checkpointer as checkpointer_lib
from haikd.storage import step_folder


def make_state(step):
  return base.TrainState(
      step=jnp.int32(step),
      params=base.Params({'net': {'w': jnp.arange(6.0).reshape(2, 3)}}, {}),
      net_state={}, opt_state=(), loss_scale=(), ema=None)


def save(workdir, *steps, keep=1):
  with checkpointer_lib.Checkpointer(workdir, keep=keep) as checkpointer:
    for step in steps:
      checkpointer.save(step, make_state(step), {'next_index': step}, {})


def names(workdir):
  return sorted(path.name for path in (workdir / 'checkpoints').iterdir())


class Kill(BaseException):
  """Ends a save where it is, as a kill does."""


def test_a_kill_while_an_old_one_is_removed_leaves_nothing(
    tmp_path, monkeypatch, caplog):
  save(tmp_path, 1)

  original = shutil.rmtree

  def kill(folder, **unused):  # Half of it is gone.
    (folder / 'checksums.json').unlink()
    original(folder / 'metadata')
    raise Kill

  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'rmtree', kill)
    with pytest.raises(Kill):
      save(tmp_path, 2)
  assert names(tmp_path) == ['1.haikd-removed', '2']
  assert checkpoint.newest(tmp_path).name == '2'
  with caplog.at_level('INFO', 'haikd'):
    save(tmp_path, 3)
  assert names(tmp_path) == ['3']
  assert 'left alone' not in caplog.text


@pytest.mark.parametrize('go_on', (False, True))
def test_files_that_cannot_be_removed_are_left_to_the_next_start(
    tmp_path, monkeypatch, caplog, go_on):
  """On NFS, a file that another process reads stays, and so does its folder."""
  original = os.rmdir

  def rmdir(path, **options):
    if str(path).endswith('.haikd-removed'):
      raise OSError(errno.ENOTEMPTY, 'Directory not empty')
    original(path, **options)

  with monkeypatch.context() as patch, checkpointer_lib.Checkpointer(
      tmp_path, keep=1, go_on=go_on) as checkpointer:
    patch.setattr(os, 'rmdir', rmdir)
    for step in (1, 2, 3):
      checkpointer.save(step, make_state(step), {}, {})
    checkpointer.wait()
    assert checkpointer.latest_step() == 3 and not checkpointer.has(2)
    with caplog.at_level('INFO', 'haikd'):
      checkpointer_lib.Checkpointer(tmp_path, keep=1)  # One more start.
  assert names(tmp_path) == ['1.haikd-removed', '2.haikd-removed', '3']
  with caplog.at_level('INFO', 'haikd'):
    save(tmp_path, 4)
  assert names(tmp_path) == ['4']
  assert not caplog.text


def test_an_old_one_that_is_gone_is_removed(tmp_path, caplog):
  save(tmp_path, 1)
  with caplog.at_level('INFO', 'haikd'), checkpointer_lib.Checkpointer(
      tmp_path, keep=1) as checkpointer:
    shutil.rmtree(tmp_path / 'checkpoints' / '1')
    for step in (2, 3):
      checkpointer.save(step, make_state(step), {}, {})
  assert names(tmp_path) == ['3']
  assert not caplog.text


def test_a_save_is_done_though_an_old_one_cannot_be_renamed(
    tmp_path, monkeypatch, caplog):
  original = os.rename

  def rename(path, to, **options):
    if str(to).endswith('.haikd-removed'):
      raise PermissionError(errno.EACCES, 'Permission denied')
    original(path, to, **options)

  with checkpointer_lib.Checkpointer(tmp_path, keep=1) as checkpointer:
    with monkeypatch.context() as patch, caplog.at_level('INFO', 'haikd'):
      patch.setattr(os, 'rename', rename)
      for step in (1, 2):
        checkpointer.save(step, make_state(step), {}, {})
      checkpointer.wait()
    assert checkpointer.has(1) and checkpointer.latest_step() == 2
    assert (f'{tmp_path}/checkpoints/1, an old checkpoint, could not be '
            'removed ([Errno 13] Permission denied); each save tries it again.'
            ) in caplog.text
    checkpointer.save(3, make_state(3), {}, {})
  assert names(tmp_path) == ['3']


@pytest.mark.parametrize('is_first', (False, True))
def test_a_process_says_its_own_error_before_it_asks_the_others(
    tmp_path, monkeypatch, is_first):
  """They wait for its leaves."""
  checkpointer = checkpointer_lib.Checkpointer(tmp_path, keep=1)

  def wait(*unused):
    raise AssertionError('It would wait.')

  monkeypatch.setattr(checkpointer_lib.distributed, 'is_first',
                      lambda: is_first)
  monkeypatch.setattr(checkpointer_lib.one_file, 'write', fail)
  checkpointer.save(1, make_state(1), {}, {})
  monkeypatch.setattr(checkpointer_lib.distributed, 'first', wait)
  with pytest.raises(checks.DataError, match=r'\[Errno 5\] Input/output error'):
    checkpointer.wait()


@pytest.mark.parametrize('is_many, closed', ((False, [True]), (True, [])))
def test_after_an_error_closing_frees_all_that_needs_no_other_process(
    tmp_path, monkeypatch, is_many, closed):
  calls = []
  monkeypatch.setattr(checkpointer_lib.one_file, 'LIMIT', 0)
  monkeypatch.setattr(checkpointer_lib.orbax_arrays.Writer, 'close',
                      lambda self: calls.append(True))
  monkeypatch.setattr(checkpointer_lib.distributed, 'is_many', lambda: is_many)
  checkpointer = checkpointer_lib.Checkpointer(tmp_path, keep=1)
  checkpointer.save(1, make_state(1), {}, {})
  monkeypatch.setattr(checkpointer_lib.distributed, 'first', fail)
  with pytest.raises(checks.DataError, match='Input/output error'):
    checkpointer.close()
  assert calls == closed


def fail(*unused):
  raise OSError(errno.EIO, 'Input/output error')


def test_a_kill_at_any_write_of_a_save_leaves_the_one_before(
    tmp_path, monkeypatch):
  calls = []

  def deadly(function):
    def call(*args, **options):
      calls.append(function)
      if len(calls) == kill_at:
        raise Kill
      return function(*args, **options)
    return call

  kills = 0
  while True:
    workdir, kill_at = tmp_path / str(kills), kills + 1
    save(workdir, 1)
    calls.clear()
    with monkeypatch.context() as patch:
      for name in ('fsync', 'replace', 'rename', 'mkdir'):
        patch.setattr(os, name, deadly(getattr(os, name)))
      try:
        save(workdir, 2)
        break
      except Kill:
        kills += 1
    assert checkpoint.newest(workdir).name in '12'
    save(workdir, 3)
    assert names(workdir) == ['3']
  assert kills >= 10


def test_amended_content_holds_its_own_checksum(tmp_path, caplog):
  save(tmp_path, 1, 2, keep=2)
  folder = tmp_path / 'checkpoints' / '2'
  with checkpointer_lib.Checkpointer(tmp_path, keep=2) as checkpointer:
    checkpointer.amend(2, {'next_index': 9}, {'scale': float('inf')})
  assert step_folder.read_extra(folder)['iterator'] == {'next_index': 9}
  assert checkpoint.newest(tmp_path) == folder
  path = folder / step_folder.AMENDED
  content = json.loads(path.read_text())
  content['content']['iterator']['next_index'] = 8
  path.write_text(json.dumps(content))
  with caplog.at_level('INFO', 'haikd'):
    assert checkpoint.newest(tmp_path).name == '1'
  assert f'{folder} is left out, since it is damaged: ' in caplog.text
  with pytest.raises(checks.DataError, match='must be complete; got'):
    step_folder.read_extra(folder)


def test_one_file_is_of_the_format_that_others_read(tmp_path):
  save(tmp_path, 1)
  path = tmp_path / 'checkpoints' / '1' / 'state' / 'leaves.safetensors'
  read = safetensors.numpy.load_file(path)
  assert read['["params", "student", "net", "w"]'].tolist() == [
      [0, 1, 2], [3, 4, 5]]
  assert read['["step"]'] == 1
