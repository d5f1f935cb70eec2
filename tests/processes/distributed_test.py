"""Two processes train what one does, and end soon after one another."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from haikd.run import rates
from haikd.storage import checkpoint
from haikd.storage import fingerprint
from haikd.storage import step_folder

ROOT = pathlib.Path(__file__).parents[2]
LOCAL = ROOT / 'launch' / 'local.sh'

# Attention over sequences of 2 to 8 tokens: each process has another number of
# real tokens in its share of a batch.
PLUGIN = """
    import haiku as hk
    import haikd
    import os
    from haikd.data import synthetic

    @haikd.register_model()
    def ragged(inputs, *, is_training, num_classes, mask, width=8):
      x = hk.Embed(num_classes, width)(inputs)
      pairs = mask[:, None, None, :] & mask[:, None, :, None]
      attention = hk.MultiHeadAttention(
          2, width // 2, w_init=hk.initializers.VarianceScaling())
      return hk.Linear(num_classes)(x + attention(x, x, x, mask=pairs))

    @haikd.register_dataset()
    def spoilt_on_one(split):
      source = synthetic.synthetic(
          split, kind='tokens', size=40, length=8, vocabulary=8)
      if os.environ['HAIKD_PROCESS_ID'] == '1':
        source.columns['label'][3, 0] = 99
      return source
"""

CONFIG = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.plugins = ('my_ragged',)
      config.steps = 40
      config.batch_size = 8
      config.log_every = 1
      config.checkpoint_every = 5
      config.evaluation.every = 20
      config.data.name = 'synthetic'
      config.data.options = dict(kind='tokens', size=40, length=8, vocabulary=8)
      config.teacher.model = config.student.model = 'ragged'
      config.teacher.options = dict(width=16)
      config.teacher.train.steps = 3
      # Not Adam: the gradient of the keys' bias is zero, and Adam would turn
      # its rounding errors into steps.
      for optimizer in config.optimizer, config.teacher.train.optimizer:
        optimizer.name = 'sgd'
        optimizer.learning_rate = 0.5
      return config
"""


# Flags of a run that is disturbed: enough steps are left when it is.
LONG = ('--config.steps=100', '--config.checkpoint_every=10',
        '--config.evaluation.every=50')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('distributed')
  (path / 'my_ragged.py').write_text(textwrap.dedent(PLUGIN))
  (path / 'ragged.py').write_text(textwrap.dedent(CONFIG))
  return path


class Run:
  """The processes of a run, started by launch/local.sh."""

  def __init__(self, folder, name, count, devices, *args):
    self.workdir, self.logs = folder / name, folder / f'{name}-logs'
    self.logs.mkdir(exist_ok=True)
    environment = dict(
        os.environ, DEVICES=str(devices), LOGS=str(self.logs),
        PYTHON=sys.executable, PYTHONPATH=str(ROOT))
    self.out = open(self.logs / 'out', 'w+', encoding='utf-8')
    self.err = open(self.logs / 'err', 'w+', encoding='utf-8')
    self.shell = subprocess.Popen(
        [LOCAL, str(count), f'--config={folder / "ragged.py"}',
         f'--workdir={self.workdir}', *args], stdout=self.out, stderr=self.err,
        env=environment)

  def pid(self, process):
    """Returns the id of a process, found by its environment variable."""
    mark = f'HAIKD_PROCESS_ID={process}'.encode()
    for path in pathlib.Path('/proc').glob('[0-9]*'):
      with contextlib.suppress(OSError):
        words = (path / 'cmdline').read_bytes().split(b'\0')
        if str(self.workdir).encode() in b' '.join(words) and (
            mark in (path / 'environ').read_bytes().split(b'\0')):
          return int(path.name)
    raise AssertionError(f'no process {process}')

  def pids(self):
    """Returns the ids of both processes once the student is trained.

    The search takes a while: do it before the step to act at.
    """
    self.reach(1)
    return [self.pid(process) for process in range(2)]

  def reach(self, rows):
    """Waits until the student has a number of rows of metrics."""
    deadline = time.monotonic() + 120
    while len(read_rows(self.workdir)) < rows:
      assert self.shell.poll() is None, self.errors()
      assert time.monotonic() < deadline
      time.sleep(0.01)

  def end(self, timeout=60):
    """Returns the exit code; kills a run that hangs."""
    try:
      return self.shell.wait(timeout)
    except subprocess.TimeoutExpired:
      for process in range(2):
        with contextlib.suppress(AssertionError, OSError):
          os.kill(self.pid(process), signal.SIGKILL)
      raise

  def errors(self):
    return (self.logs / 'err').read_text()

  def log(self):
    """Returns the output of process 1."""
    return (self.logs / 'process-1.log').read_text()


def read_rows(workdir):
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  rows = [json.loads(x) for x in path.read_text().split('\n')[:-1]]
  return rates.without(rows)


def train(folder, name, count, devices, *args):
  run = Run(folder, name, count, devices, *args)
  assert run.end(240) == 0, run.errors()
  return run


def assert_same_parameters(workdir, other):
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-6),
      checkpoint.load_network(workdir), checkpoint.load_network(other))


@pytest.fixture(scope='module')
def undisturbed(folder):
  return train(folder, 'undisturbed', 2, 2).workdir


@pytest.fixture(scope='module')
def long_undisturbed(folder):
  return train(folder, 'long-undisturbed', 2, 2, *LONG).workdir


def test_two_processes_train_what_one_does(folder, undisturbed):
  alone = train(folder, 'alone', 1, 4).workdir
  for part in ('teacher', '.'):
    assert_same_parameters(undisturbed / part, alone / part)
    rows, others = read_rows(undisturbed / part), read_rows(alone / part)
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    for row, other in zip(rows, others):
      assert row.pop('split') == other.pop('split')
      assert row == pytest.approx(other, rel=1e-6, abs=1e-6)
  pages = [(x / 'report.html').read_text() for x in (undisturbed, alone)]
  # Headings, and the token on which student and teacher differ most.
  found, expected = (re.findall('<h2>.*?</h2>|<tbody>\n<tr><td>\\d.*?</tr>', x)
                     for x in pages)
  assert found[:5] == expected[:5] and found[4].startswith('<tbody>')


def complaint(run, process):
  """Returns the one error line of a process, without its label."""
  text = run.log() if process else run.errors()
  mark = f'haikd [{process}]: '
  lines = [x for x in text.splitlines() if x.startswith(mark)]
  assert len(lines) == 1, text
  return lines[0].removeprefix(mark)


@pytest.mark.slow
@pytest.mark.parametrize('victim, whom', [
    (0, 'process 0, which is gone'),
    (1, 'no sign of life from process 1 for [13]0 seconds'),
])
def test_killed_process_ends_the_other(folder, long_undisturbed, victim, whom):
  run = Run(folder, f'killed-{victim}', 2, 2, *LONG)
  pids = run.pids()
  other = pids[1 - victim]
  run.reach(12)
  os.kill(pids[victim], signal.SIGKILL)
  assert run.end(60) == 128 + signal.SIGKILL  # The first to fail.
  assert not pathlib.Path(f'/proc/{other}').exists()
  assert re.fullmatch(
      f'all processes of a run must stay alive; got {whom}. Start all again to '
      'go on from the newest checkpoint.',
      complaint(run, 1 - victim))
  assert not (run.workdir / 'result.json').exists()
  if victim == 0:
    train(folder, f'killed-{victim}', 2, 2, *LONG)
    assert_same_parameters(run.workdir, long_undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_hanging_process_ends_the_other(folder, victim):
  run = Run(folder, f'stopped-{victim}', 2, 2, '--config.steps=100000')
  pids = run.pids()
  stopped, other = pids[victim], pids[1 - victim]
  run.reach(12)
  os.kill(stopped, signal.SIGSTOP)
  try:
    deadline = time.monotonic() + 60
    while pathlib.Path(f'/proc/{other}').exists():
      assert time.monotonic() < deadline
      time.sleep(0.1)
    assert f'no sign of life from process {victim} for 30 s' in complaint(
        run, 1 - victim)
  finally:
    os.kill(stopped, signal.SIGKILL)
  run.end()


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_one_step(folder, long_undisturbed):
  run = Run(folder, 'terminated', 2, 2, *LONG)
  pids = run.pids()
  run.reach(12)
  os.kill(pids[1], signal.SIGTERM)
  assert run.end() == 75
  step = int(step_folder.find(run.workdir / 'checkpoints').name)
  assert 10 < step < 100
  for process in range(2):
    assert complaint(run, process) == (
        f'stopped by SIGTERM at step {step} of student, which is saved. Start '
        'it again to go on.')
  assert read_rows(run.workdir)[-1]['step'] == step
  train(folder, 'terminated', 2, 2, *LONG)
  assert fingerprint.tree_hash(checkpoint.load_network(run.workdir)) == (
      fingerprint.tree_hash(checkpoint.load_network(long_undisturbed)))
  assert read_rows(run.workdir) == read_rows(long_undisturbed)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(folder):
  """One saves a small state in one file, and two by Orbax."""
  first, then = ((x, '--config.optimizer.schedule=constant') for x in (
      '--config.steps=10', '--config.steps=20'))
  for counts in ((1, 2), (2, 1)):
    for count, flags in zip(counts, (first, then)):
      workdir = train(folder, f'from-{counts[0]}', count, 4 // count,
                      *flags).workdir
      newest = step_folder.find(workdir / 'checkpoints')
      assert (newest / 'state' / 'leaves.safetensors').exists() == (count == 1)
    assert len(read_rows(workdir)) == 22  # Two of them are evaluations.
  assert_same_parameters(workdir, folder / 'from-1')


@pytest.mark.slow
def test_sigterm_stops_a_process_that_is_alone(folder):
  run = Run(folder, 'alone-terminated', 1, 1, '--config.steps=100000')
  run.reach(3)
  run.shell.send_signal(signal.SIGTERM)  # The script passes it on.
  assert run.end() == 75
  step = int(step_folder.find(run.workdir / 'checkpoints').name)
  assert f'stopped by SIGTERM at step {step} of student' in run.errors()


def test_failure_of_one_process_ends_the_other(folder):
  run = Run(folder, 'spoilt', 2, 2, '--config.data.name=spoilt_on_one',
            '--config.data.options={}')
  started = time.monotonic()
  assert run.end() in (3, 6)
  assert time.monotonic() - started < 60
  assert complaint(run, 1).startswith("example 3 of split 'train' must")
  assert 'got process 1, which ended with exit code 3 (DataError: example' in (
      complaint(run, 0))


def test_claim_refuses_on_all_processes(folder, undisturbed):
  run = Run(folder, 'undisturbed', 2, 1, '--config.seed=1')
  assert run.end() == 3
  for process in range(2):
    assert complaint(run, process).startswith(
        '--workdir must belong to this config; got config.seed=1')


def test_processes_that_are_not_described_in_full_are_refused(folder):
  run = Run(folder, 'half', 1, 1, '--num_processes=2')
  assert run.end() == 2
  assert 'must be given together; got coordinator=None' in run.errors()
