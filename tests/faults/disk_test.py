"""Disks that are full or gone, and metrics that were removed."""

import errno
import json

import jax
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.data import pipeline
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.run import trainer
from haikd.run import training
from haikd.run import writer
from haikd.storage import checkpoint
from haikd.storage import checkpointer
from haikd.storage import checksums
from haikd.storage import fingerprint
from haikd.storage import one_file


@pytest.fixture(scope='module')
def build():
  """Returns a function that trains in a folder; all share a program."""
  config = config_lib.base()
  config.batch_size, config.log_every, config.checkpoint_every = 16, 1, 4
  config.evaluation.every, config.keep_checkpoints = 100, 9
  config.data.name = 'synthetic'
  config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
  config.student.options = dict(hidden=(4,))
  config.optimizer.schedule = 'constant'
  data = pipeline.build_data(config)
  program = program_lib.build_program(
      config, spec=data.spec, num_classes=3, has_teacher=False,
      mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:1]))

  def start(workdir, steps=12, on_error='stop', **fields):
    changed = config.copy_and_resolve_references()
    changed.steps, changed.checkpoint_on_error = steps, on_error
    changed.update(fields)
    trained = trainer.train(changed, program, data, None, workdir, 'student')
    return fingerprint.tree_hash(trained.network)

  return start


def full(*unused):
  raise OSError(errno.ENOSPC, 'No space left on device [source locations=\n'
                'Traceback (most recent call last):\n' + 'x' * 1000)


def steps(workdir):
  return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())


def rows(workdir):
  return [json.loads(line)['step'] for line in (
      workdir / 'metrics.jsonl').read_text().splitlines()]


# Where a save fails: before it, and in its thread, which the next one finds.
FAULTS = dict(before=(checkpointer.Checkpointer, '_begin'),
              arrays=(one_file, 'write'), within=(checksums, 'write'))


def fail_at(monkeypatch, fault, number):
  """Makes one save fail, by its number."""
  owner, name = FAULTS[fault]
  original, calls = getattr(owner, name), []

  def call(*args):
    calls.append(args)
    return (full if len(calls) == number else original)(*args)

  monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize('fault', FAULTS)
def test_a_save_that_fails_ends_the_run_or_is_said(
    build, tmp_path, monkeypatch, caplog, fault):
  expected = build(tmp_path / 'whole')
  with monkeypatch.context() as patch:
    fail_at(patch, fault, 2)
    with pytest.raises(checks.DataError) as err:
      build(tmp_path / 'run')
  assert str(err.value) == (
      '--workdir must be a folder that can be written to; got '
      f'{tmp_path}/run/checkpoints ([Errno 28] No space left on device). Make '
      'room, or choose another --workdir.')
  assert checkpoint.newest(tmp_path / 'run').name == '4'
  with monkeypatch.context() as patch, caplog.at_level('INFO', 'haikd'):
    fail_at(patch, fault, 1)  # That of step 8.
    assert build(tmp_path / 'run', on_error='go_on') == expected
  assert steps(tmp_path / 'run') == [4, 12]
  assert ('the checkpoint of step 8 was not written, and training goes on '
          '(config.checkpoint_on_error): --workdir must') in caplog.text
  assert rows(tmp_path / 'run') == rows(tmp_path / 'whole')


def test_a_best_network_stays_until_a_better_one_is_written(
    build, tmp_path, monkeypatch, caplog):
  expected = build(tmp_path / 'four', steps=4)
  scores = iter((0.5, 0.9, 0.1, 0.3))  # After 4, 8, 12 and 16 steps.
  monkeypatch.setattr(training.evaluate, 'evaluate',
                      lambda *unused: dict(accuracy=next(scores)))
  fail_at(monkeypatch, 'within', 2)
  with caplog.at_level('INFO', 'haikd'):
    network = build(
        tmp_path / 'run', on_error='go_on', keep_checkpoints=1,
        evaluation=dict(every=4, keep_best='accuracy'))
  assert network == expected
  assert steps(tmp_path / 'run') == [4, 12]
  assert ('student is that of step 4, since no checkpoint was written of step '
          '8, with accuracy 0.9, the best of validation.') in caplog.text
  # Nor is it lost in the next start, which cannot return to step 8.
  network = build(
      tmp_path / 'run', steps=16, keep_checkpoints=1,
      evaluation=dict(every=4, keep_best='accuracy'))
  assert network == expected and steps(tmp_path / 'run') == [4, 16]


def test_rows_wait_until_there_is_room(tmp_path, monkeypatch, caplog):
  with writer.open_writer(tmp_path, total_steps=9, go_on=True) as opened:
    write = lambda step: opened.write(step, 'train', dict(loss=1.0))
    write(1)
    folder = tmp_path.rename(tmp_path.with_name('gone'))
    with caplog.at_level('INFO', 'haikd'):
      write(2)
    folder.rename(tmp_path)
    write(3)
  assert 'wait until they can be written: --workdir must be' in caplog.text
  assert rows(tmp_path) == [1, 2, 3]
  with writer.open_writer(tmp_path, total_steps=9) as opened:
    folder = tmp_path.rename(tmp_path.with_name('gone'))
    with pytest.raises(checks.DataError, match='^--workdir must be a folder'):
      opened.write(4, 'train', dict(loss=1.0))
    folder.rename(tmp_path)


@pytest.mark.parametrize('damage, left', (('deleted', 0), ('cut', 3)))
def test_rows_that_were_removed_are_said(build, tmp_path, caplog, damage, left):
  build(tmp_path, steps=8)
  path = tmp_path / 'metrics.jsonl'
  lines = path.read_bytes().splitlines(keepends=True)
  assert len(lines) == 10  # Eight of training, an evaluation, and the time.
  if damage == 'deleted':
    path.unlink()
  else:
    path.write_bytes(b''.join(lines[:3]) + lines[3][:20])
  with caplog.at_level('INFO', 'haikd'):
    build(tmp_path, steps=12)
  said = [x.getMessage() for x in caplog.records if 'rows' in x.getMessage()]
  assert said == [f'{path} has {left} of the 9 rows up to step 8: the others '
                  'were removed. Training goes on without them.']
  assert rows(tmp_path) == [*range(1, left + 1), 9, 10, 11, 12, 12, 12]
