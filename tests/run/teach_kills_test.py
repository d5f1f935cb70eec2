"""Recording that is killed at any moment, by one process and by two."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
LOCAL = ROOT / 'launch' / 'local.sh'
N = 32
CONFIG = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.batch_size, config.evaluation.batch_size = 8, 128
      config.data.name, config.data.source_dir = 'tokens', {folder!r}
      config.data.options = dict(length=32, vocabulary=40)
      config.teacher.model = config.student.model = 'llama'
      config.teacher.options = dict(width=16, depth=1, heads=2, hidden=16)
      config.student.options = dict(width=8, depth=1, heads=2, hidden=8)
      config.teacher.train.steps = 2
      config.teacher.records = dict(path={folder!r} + '/records')
      config.distillation.temperature = 1.0
      return config
"""


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  # Four shards of 2**15 positions.
  for split, rows in (('train', 2**12), ('validation', 4), ('test', 4)):
    np.save(tmp_path / f'{split}.npy', rng.integers(0, 40, N * rows))
  (tmp_path / 'job.py').write_text(
      textwrap.dedent(CONFIG.format(folder=str(tmp_path))))
  return tmp_path


def start(folder, processes, path):
  environment = dict(os.environ, DEVICES='2', LOGS=str(folder / 'logs'),
                     PYTHON=sys.executable, PYTHONPATH=str(ROOT))
  (folder / 'logs').mkdir(exist_ok=True)
  # A session of its own, which is killed as a whole.
  return subprocess.Popen(
      [LOCAL, str(processes), f'--config={folder / "job.py"}',
       f'--workdir={folder / "run"}', '--mode=teach',
       f'--config.teacher.records.path={path}'],
      env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL)


def kill(job):
  """Kills all processes of a session; each may be in a group of its own."""
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):
      # Behind the name: state, parent, group, session.
      if int(path.read_text().rpartition(')')[2].split()[3]) == job.pid:
        os.kill(int(path.parent.name), signal.SIGKILL)
  job.wait()


def content(path):
  return {x.name: x.read_bytes() for x in sorted(path.iterdir())
          if not x.name.startswith('.')}


@pytest.mark.slow
@pytest.mark.parametrize('processes,kills', [(1, 20), (2, 6)])
def test_killed_recording_ends_bitwise_as_undisturbed(
    folder, processes, kills):
  begun = time.monotonic()
  assert start(folder, processes, folder / 'whole').wait() == 0
  seconds = time.monotonic() - begun  # With the teacher's training.
  rng, done = random.Random(processes), 0
  while done < kills:
    job = start(folder, processes, folder / 'killed')
    time.sleep(rng.uniform(0.2, 1.0) * seconds)
    if job.poll() is not None:  # It was done: begin anew.
      assert job.returncode == 0
      for path in (folder / 'killed').iterdir():
        path.unlink()
      continue
    kill(job)
    done += 1
  assert start(folder, processes, folder / 'killed').wait() == 0
  assert content(folder / 'killed') == content(folder / 'whole')
