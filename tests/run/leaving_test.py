"""A run that is stopped while something compiles ends at once."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

CONFIG = """
    import os
    import signal
    import time

    from haikd import config as config_lib
    from haikd.run import ahead
    from haikd.run import training

    start, requested = ahead.start, training.distributed.stop_requested
    calls = []

    def start_slowly(trainee, workdir, executor, before=None):
      executor.submit(time.sleep, 120)  # A compilation.
      return start(trainee, workdir, executor)

    def stop_requested():
      calls.append(None)
      if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
      return requested()

    ahead.start = start_slowly
    training.distributed.stop_requested = stop_requested

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.log_every = 1000, 16, 1
      config.baseline = False
      config.data.name = 'synthetic'
      config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
      config.teacher.model = ''
      config.distillation.alpha = None
      config.losses.hard = dict(loss='cross_entropy', weight=1.0)
      config.student.options = dict(hidden=(4,))
      config.report.write = False
      return config
"""


@pytest.mark.parametrize('module', ('haikd.launch', 'haikd'))
def test_exit_code_comes_without_the_compilation(tmp_path, module):
  config, workdir = tmp_path / 'config.py', tmp_path / 'run'
  config.write_text(textwrap.dedent(CONFIG))
  start = time.monotonic()
  done = subprocess.run(
      [sys.executable, '-m', module, f'--config={config}',
       f'--workdir={workdir}'], capture_output=True, text=True, check=False,
      timeout=110, env=dict(os.environ))
  assert done.returncode == 75, done.stderr
  assert time.monotonic() - start < 100
  assert 'stopped by SIGTERM at step' in done.stderr
  assert list((workdir / 'checkpoints').iterdir())
  rows = [json.loads(line) for line in (
      workdir / 'metrics.jsonl').read_text().splitlines()]
  assert len(rows) == int(next((workdir / 'checkpoints').iterdir()).name)
