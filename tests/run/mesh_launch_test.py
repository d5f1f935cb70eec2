"""The command line, stopped on some devices and started again on others."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

STEPS = 300
CONFIG = f"""
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size = {STEPS}, 16
      config.log_every, config.checkpoint_every = 1, 50
      config.evaluation.every, config.evaluation.batch_size = 150, 16
      config.data.name = 'synthetic'
      config.data.options = dict(size=80, shape=(4, 4, 1), num_classes=3)
      config.teacher.options = dict(hidden=(8, 8))
      config.teacher.train.steps = 20
      config.student.options = dict(hidden=(8,))
      config.optimizer.ema_decay = 0.9
      config.report.write = False
      return config
"""


def start(folder, devices):
  config = folder.parent / 'config.py'
  config.write_text(textwrap.dedent(CONFIG))
  flags = (f'{os.environ["XLA_FLAGS"]} '
           f'--xla_force_host_platform_device_count={devices}')
  return subprocess.Popen(
      [sys.executable, '-m', 'haikd.launch', f'--config={config}',
       f'--workdir={folder}'],
      env=dict(os.environ, XLA_FLAGS=flags), text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def rows_of(folder):
  path = folder / 'metrics.jsonl'
  lines = path.read_text().split('\n')[:-1] if path.exists() else []
  return [json.loads(line) for line in lines]


def finish(folder, devices):
  process = start(folder, devices)
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output


def stop(folder, devices):
  """Stops a run with SIGTERM somewhere in the student's training."""
  process = start(folder, devices)
  while process.poll() is None and len(rows_of(folder)) < 20:
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 75, output
  assert 20 <= len(rows_of(folder)) < STEPS, output


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole') / 'run'
  finish(folder, devices=1)
  return folder


@pytest.mark.parametrize('first, second', [
    (1, 8), pytest.param(8, 2, marks=pytest.mark.slow)])
def test_a_stopped_run_has_the_same_loss_on_other_devices(
    tmp_path, expected, first, second):
  folder = tmp_path / 'run'
  stop(folder, first)
  finish(folder, second)
  rows, whole = rows_of(folder), rows_of(expected)
  assert [(row['step'], row['split']) for row in rows] == [
      (row['step'], row['split']) for row in whole]
  losses = [np.array([row['loss'] for row in each if row['split'] == 'train'])
            for each in (rows, whole)]
  assert losses[0].shape == (STEPS,)
  print('loss differs by', np.abs(losses[0] - losses[1]).max())
  np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)
  result, other = (json.loads((each / 'result.json').read_text())
                   for each in (folder, expected))
  for network in result:
    np.testing.assert_allclose(result[network]['cross_entropy'],
                               other[network]['cross_entropy'], atol=1e-5)
