"""A killed job that is started again ends with the same parameters."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from haikd.storage import checkpoint
from haikd.storage import fingerprint

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'

# Has everything that a restart could get wrong: dropout, BatchNorm, the running
# mean, augmentation, and the order of the data.
CONFIG = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps = 60
      config.batch_size = 16
      config.log_every = 1
      config.checkpoint_every = 7
      config.baseline = True
      config.data.name = 'synthetic'
      config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
      config.data.augment = dict(shift={}, mixup={})
      config.optimizer.ema_decay = 0.9
      config.teacher.options = dict(hidden=(8,))
      config.teacher.train.steps = 40
      config.student.model = 'convnet'
      config.student.options = dict(channels=(4,), dropout=0.2)
      return config
"""


def start(config, workdir, *args):
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=1'
  environment = dict(os.environ, XLA_FLAGS=flags)
  return subprocess.Popen(
      [sys.executable, '-m', 'haikd.launch', f'--config={config}',
       f'--workdir={workdir}', *args],
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(process):
  _, err = process.communicate(timeout=600)
  assert process.returncode == 0, err.decode()


def kill(process):
  process.send_signal(signal.SIGKILL)
  process.communicate()


def count_rows(folder):
  path = folder / 'metrics.jsonl'
  return path.read_bytes().count(b'\n') if path.exists() else 0


def identity(workdir):
  """Returns the hashes of all networks of a job."""
  return {
      part: fingerprint.tree_hash(checkpoint.load_network(workdir / part))
      for part in ('teacher', 'baseline', '.')
  }


def rows(workdir):
  """Returns the rows of the student, without the clock."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  result = [json.loads(line) for line in lines]
  for row in result:
    row.pop('examples_per_second', None)
  return result


def test_killed_job_ends_bitwise_the_same(tmp_path):
  config = tmp_path / 'config.py'
  config.write_text(textwrap.dedent(CONFIG))
  undisturbed, disturbed = tmp_path / 'undisturbed', tmp_path / 'disturbed'
  finish(start(config, undisturbed))
  # Kills while the teacher and, in its second half, the student train.
  for part, after in (('teacher', 20), ('.', 40)):
    process = start(config, disturbed)
    deadline = time.monotonic() + 120
    while count_rows(disturbed / part) < after:
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.002)
    kill(process)
  assert not (disturbed / 'result.json').exists()
  finish(start(config, disturbed))
  assert identity(disturbed) == identity(undisturbed)
  assert rows(disturbed) == rows(undisturbed)


def test_a_damaged_checkpoint_costs_its_steps_alone(run, tmp_path):
  flags = ('--config.optimizer.schedule=constant', '--config.steps=12')
  assert run(*flags, workdir='whole')[0] == 0
  assert run(*flags, '--config.steps=8')[0] == 0
  newest = tmp_path / 'run/checkpoints/8'
  next((newest / 'state').glob('*/d/*')).write_bytes(b'')
  code, _, err = run(*flags)
  assert code == 0
  assert err.count(f'{newest} is left out, since it is damaged: ') == 1
  assert rows(tmp_path / 'run') == rows(tmp_path / 'whole')
  run_hash, whole_hash = (
      fingerprint.tree_hash(checkpoint.load_network(tmp_path / workdir))
      for workdir in ('run', 'whole'))
  assert run_hash == whole_hash


@pytest.mark.slow
def test_default_job_survives_kills_at_arbitrary_moments(tmp_path):
  config = CONFIGS / 'digits_mlp_from_convnet.py'
  undisturbed, disturbed = tmp_path / 'undisturbed', tmp_path / 'disturbed'
  started = time.monotonic()
  finish(start(config, undisturbed))
  length = time.monotonic() - started
  moments = random.Random(0)
  for _ in range(12):
    process = start(config, disturbed, '--config.checkpoint_every=20')
    try:
      process.wait(timeout=moments.uniform(0.1, 0.7) * length)
    except subprocess.TimeoutExpired:
      kill(process)
  finish(start(config, disturbed))
  assert identity(disturbed) == identity(undisturbed)
