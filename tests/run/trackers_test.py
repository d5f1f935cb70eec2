"""What a run logs also goes to a tracker, which never ends the run."""

import json
import math
import sqlite3
import struct
import sys
import textwrap

import pytest

from haikd import config as config_lib
from haikd.core import writers
from haikd.run import trackers
from haikd.storage import checkpointer
from haikd.storage import files

PLUGIN = """
    import haikd

    OPENED = []

    @haikd.register_writer('my/tracker')
    class Mine:
      fails = ''

      def __init__(self, workdir, *, title, config, identity):
        if self.fails == 'open':
          raise RuntimeError('no route to host')
        self.workdir, self.title, self.config = workdir, title, config
        self.identity, self.rows, self.closed = identity, [], 0
        OPENED.append(self)

      def write(self, step, split, metrics):
        if self.fails == 'write' and step > 2:
          raise RuntimeError('quota\\nexceeded')
        self.rows.append(dict(step=step, split=split, **metrics))

      def close(self):
        self.closed += 1

    @haikd.register_loss(on='logits')
    def zero_over_nothing(student, teacher, *, mask):
      return haikd.masked_mean((student - teacher).sum(-1), mask)
"""
FLAGS = ('--config.plugins=my_tracker', '--config.tracker=my/tracker')


@pytest.fixture
def mine(run, tmp_path):
  """The module of a tracker that keeps what it gets."""
  (tmp_path / 'my_tracker.py').write_text(textwrap.dedent(PLUGIN))
  with writers.writers.temporary():
    sys.path.insert(0, str(tmp_path))
    import my_tracker
    yield my_tracker


def rows_of(folder):
  return files.read_rows(folder / 'metrics.jsonl')


def test_a_tracker_gets_the_rows_of_the_workdir(run, mine, tmp_path):
  assert run(*FLAGS, '--config.baseline=True')[::2] == (0, '')
  workdir = tmp_path / 'run'
  assert [x.title for x in mine.OPENED] == [
      'teacher', 'student alone', 'student']
  for tracker, folder in zip(mine.OPENED, ('teacher', 'baseline', '')):
    assert tracker.workdir == workdir / folder
    assert tracker.rows == rows_of(workdir / folder)
    assert tracker.config['tracker'] == 'my/tracker'
    assert tracker.closed == 1
  assert len({x.identity for x in mine.OPENED}) == 3
  # A finished run writes nothing, so that nothing is opened; and another run
  # may go on with another tracker, or none.
  assert run(*FLAGS, '--config.tracker=None')[0] == 0
  assert run(*FLAGS)[0] == 0
  assert len(mine.OPENED) == 3


def test_a_resumed_run_goes_on_with_its_run(run, mine, tmp_path, monkeypatch):
  save = checkpointer.Checkpointer.save

  def kill(self, step, *args):
    save(self, step, *args)
    if step == 4 and len(mine.OPENED) == 2:  # The student's first checkpoint.
      self.wait()
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(checkpointer.Checkpointer, 'save', kill)
    assert run(*FLAGS)[0] == 130
  assert run(*FLAGS)[0] == 0
  _, before, after = mine.OPENED
  assert before.identity == after.identity
  assert before.rows + after.rows == rows_of(tmp_path / 'run')


def test_values_that_are_not_finite_are_not_sent(mine, tmp_path):
  config = config_lib.base()
  config.tracker = 'my/tracker'
  tracker = trackers.Tracker(config, tmp_path, 'student')
  tracker.truncate(0)
  tracker.write(1, 'eval/test', dict(a=math.nan, b=math.inf, c=1.5))
  assert mine.OPENED[0].rows == [dict(step=1, split='eval/test', c=1.5)]


@pytest.mark.parametrize('folder, title, name', (
    ('runs/x', 'student', 'x student'),
    ('runs/x/teacher', 'teacher', 'x teacher'),
    ('runs/x/baseline', 'student alone', 'x student alone'),
    # A workdir may be called as the folders of networks are.
    ('runs/baseline', 'student', 'baseline student'),
    ('runs/teacher/teacher', 'teacher', 'teacher teacher'),
    ('runs/x/seed-0', 'student', 'x seed-0 student'),
    ('runs/x/seed-0/teacher', 'teacher', 'x seed-0 teacher')))
def test_a_run_is_called_as_its_workdir_and_network(folder, title, name):
  assert trackers._name(folder, title) == name


@pytest.mark.parametrize('fails, why', (
    ('open', 'no route to host'), ('write', 'quota exceeded')))
def test_a_tracker_that_fails_does_not_end_the_run(
    run, mine, tmp_path, monkeypatch, fails, why):
  monkeypatch.setattr(mine.Mine, 'fails', fails)
  code, _, err = run(*FLAGS)
  assert code == 0
  assert err.splitlines() == [
      f"haikd: config.tracker='my/tracker' has failed and gets no more rows of "
      f'{title}: RuntimeError: {why}. The run goes on; metrics.jsonl has all '
      'rows.' for title in ('teacher', 'student')]
  assert rows_of(tmp_path / 'run')[-1]['step'] == 8


@pytest.mark.parametrize('name, match', (
    ('wandbb', "config.tracker must name a registered writer; got 'wandbb'. "
     "Did you mean 'wandb'"),
    ('my/absent', "must be a tracker that is installed; got 'my/absent'. Run "
     '`pip install no_such_package`, or set it to None.')))
def test_what_is_not_there_is_refused_at_once(run, tmp_path, name, match):
  with writers.writers.temporary():
    writers.register_writer('my/absent', package='no_such_package')(print)
    code, _, err = run(f'--config.tracker={name}')
  assert code == 2 and match in err, err
  assert not (tmp_path / 'run').exists()


def leveldb_records(content, block=2**15):
  """Yields the records of a log in LevelDB's format, after its 7 bytes."""
  place, parts = 7, b''
  while place + 7 <= len(content):
    if block - place % block < 7:  # The rest of a block is not used.
      place += block - place % block
      continue
    length, kind = struct.unpack('<HB', content[place + 4:place + 7])
    parts += content[place + 7:place + 7 + length]
    place += 7 + length
    if kind in (1, 4):  # A whole record, or the last part of one.
      yield parts
      parts = b''


@pytest.mark.slow
def test_wandb_offline(run, tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  assert run('--config.tracker=wandb')[::2] == (0, '')
  folder, = (tmp_path / 'run' / 'wandb').glob('offline-run-*')
  identity = json.loads((tmp_path / 'run/tracker.json').read_text())['identity']
  assert folder.name.endswith(identity)
  from wandb.proto import wandb_internal_pb2
  steps: dict = {}
  for data in leveldb_records(next(folder.glob('*.wandb')).read_bytes()):
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    if record.WhichOneof('record_type') == 'history':
      values = {x.key or '/'.join(x.nested_key): json.loads(x.value_json)
                for x in record.history.item}
      steps.setdefault(record.history.step.num, {}).update(values)
  for row in rows_of(tmp_path / 'run'):
    for name, value in row.items():
      if name not in ('step', 'split'):
        sent = steps[row['step']][f'{row["split"]}/{name}']
        assert sent == pytest.approx(value)


@pytest.mark.slow
def test_mlflow_in_a_folder(run, tmp_path, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/mlflow.db')
  monkeypatch.chdir(tmp_path)
  code, _, err = run('--config.tracker=mlflow')
  assert code == 0 and 'has failed' not in err, err  # MLflow logs there.
  assert run('--config.tracker=mlflow', '--config.steps=10', workdir='more')[
      0] == 0
  client = mlflow.MlflowClient(f'sqlite:///{tmp_path}/mlflow.db')
  experiment = client.get_experiment_by_name('haikd')
  found = {x.info.run_name: x for x in client.search_runs(
      [experiment.experiment_id])}
  assert set(found) == {'run teacher', 'run student', 'more teacher',
                        'more student'}
  run_id = found['run student'].info.run_id
  history = client.get_metric_history(run_id, 'train/loss')
  assert [(x.step, x.value) for x in history] == [
      (row['step'], pytest.approx(row['loss']))
      for row in rows_of(tmp_path / 'run') if row['split'] == 'train']
  assert found['run student'].info.status == 'FINISHED'
  # The identity of the workdir leads to the same run again.
  identity = files.read_json(tmp_path / 'run/tracker.json')['identity']
  again = trackers._Mlflow(tmp_path / 'run', 'student', {}, identity)
  assert again._run == run_id


@pytest.mark.slow
def test_trackio_in_a_folder(run, tmp_path, monkeypatch):
  monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
  pytest.importorskip('trackio')  # It reads the variable when it is imported.
  assert run('--config.tracker=trackio')[::2] == (0, '')
  # The identity of the workdir leads to the same run again.
  identity = files.read_json(tmp_path / 'run/tracker.json')['identity']
  again = trackers._Trackio(tmp_path / 'run', 'student', {}, identity)
  again.write(99, 'train', dict(loss=0.5))
  again.close()
  found: dict = {}
  database = sqlite3.connect(tmp_path / 'trackio' / 'haikd.db')
  for name, step, metrics in database.execute(
      'select run_name, step, metrics from metrics'):
    found.setdefault(name, {}).setdefault(step, {}).update(json.loads(metrics))
  assert len(found) == 2  # Teacher and student.
  student, = (x for name, x in found.items() if 'student' in name)
  for row in [*rows_of(tmp_path / 'run'),
              dict(step=99, split='train', loss=0.5)]:
    for name in set(row) - {'step', 'split'}:
      assert student[row['step']][f'{row["split"]}/{name}'] == pytest.approx(
          row[name])
