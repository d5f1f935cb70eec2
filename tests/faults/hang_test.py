"""A run that does not get on says where, and ends."""

import os
import subprocess
import sys
import textwrap
import threading

import pytest

from haikd.processes import watchdog

CONFIG = """
    import threading
    import haikd
    import numpy as np
    from haikd import config as config_lib

    HANGS = ('train', 'data'), ('test', 'evaluation')
    turned = threading.Event()  # A test in this process turns it.

    def hang():
      turned.wait()

    @haikd.register_dataset()
    def hanging(split, phase):

      class Rows:
        num_classes, count = 3, 0

        def __len__(self):
          # Too large a split to be kept in memory.
          return 10**5 if (split, phase) in HANGS else 40

        def __getitem__(self, index):
          self.count += 1
          if phase == 'check' or (
              (split, phase) in HANGS and self.count > 60):
            hang()
          return dict(x=np.zeros(2000, np.float32), label=index % 3)

      return Rows()

    def get_config(phase):
      config = config_lib.base()
      config.steps, config.batch_size, config.evaluation.batch_size = 9, 8, 8
      config.data.name, config.data.options = 'hanging', dict(phase=phase)
      config.student.options = config.teacher.options = dict(hidden=(4,))
      config.teacher.train.steps = 2
      config.guard.hang_after = 8.0
      return config
"""


def hang(monkeypatch, **how):
  """Hangs for a while in a phase; returns whether its process was ended."""
  ended, turned = [], threading.Event()
  monkeypatch.setattr(watchdog.distributed, 'end',
                      lambda error: (ended.append(error), turned.set()))
  with watchdog.watched(0.4, **how):
    watchdog.enter(watchdog.SAVE, 'step 5 of student')
    turned.wait(1.5)
  return ended


def test_a_phase_without_a_sign_of_life_ends_the_process(
    monkeypatch, caplog, capfd):
  with caplog.at_level('INFO', 'haikd'):
    error, = hang(monkeypatch, ends_process=True)
  assert error.exit_code == 7
  assert 'step 5 of student has been in the phase save for 0.2' in caplog.text
  err = capfd.readouterr().err
  assert 'hang_test.py' in err and 'Thread 0x' in err  # The stacks.
  assert ('haikd: a phase must get on within 0.4 seconds, config.guard.'
          'hang_after; got the phase save of step 5 of student, which') in err


def test_a_library_does_not_end_its_caller(monkeypatch, capfd):
  assert not hang(monkeypatch)
  assert 'the phase save of step 5 of student' in capfd.readouterr().err


def test_what_gets_on_or_has_no_limit_is_no_hang(monkeypatch, capfd):
  ended = []
  monkeypatch.setattr(watchdog.distributed, 'end', ended.append)
  wait = threading.Event().wait
  with watchdog.watched(0.4, ends_process=True):
    with watchdog.during(watchdog.EVALUATION):
      for _ in range(12):
        watchdog.alive()
        wait(0.1)
    for step in range(12):
      watchdog.enter(watchdog.STEP, f'step {step}')
      wait(0.1)
    with watchdog.during(None):
      wait(1.0)
  wait(0.6)
  assert not ended and 'must get on' not in capfd.readouterr().err


def test_a_batch_that_does_not_come_is_named(run, tmp_path, monkeypatch):
  (tmp_path / 'hanging.py').write_text(textwrap.dedent(CONFIG))
  errors = []

  def end(error):
    if 'the phase data of ' in str(error):  # And not a slow compilation.
      errors.append(error)
      sys.modules['config_file'].turned.set()

  monkeypatch.setattr(watchdog.distributed, 'end', end)
  code, _, err = run('--config.guard.hang_after=3.0', config='hanging.py:data')
  assert code == 0, err
  assert len(errors) == 1


@pytest.mark.slow
@pytest.mark.parametrize('phase, where', (
    ('check', 'the phase data of the check of the data'),
    ('data', 'the phase data of '),
    ('evaluation', 'the phase evaluation of')))
def test_a_data_source_that_hangs_ends_the_command(tmp_path, phase, where):
  (tmp_path / 'hanging.py').write_text(textwrap.dedent(CONFIG))
  done = subprocess.run(
      [sys.executable, '-m', 'haikd.launch', '--config=hanging.py:' + phase,
       '--workdir=run'], cwd=tmp_path, capture_output=True, text=True,
      check=False, timeout=400, env=dict(os.environ, XLA_FLAGS=os.environ[
          'XLA_FLAGS'] + ' --xla_force_host_platform_device_count=1'))
  assert done.returncode == 7, done.stderr
  assert where in done.stderr and 'in hang\n' in done.stderr
  assert done.stderr.splitlines()[-1].startswith('haikd: a phase must get on')
