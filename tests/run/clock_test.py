"""What a training took its time for, in words."""

import pytest

import haikd
from haikd import config as config_lib
from haikd.processes import watchdog
from haikd.run import clock


@pytest.fixture
def now(monkeypatch):
  """A clock that stands; the returned function moves it."""
  time = [0.0]
  monkeypatch.setattr(watchdog.time, 'monotonic', lambda: time[0])
  monkeypatch.setattr(watchdog, '_since', 0.0)
  monkeypatch.setattr(watchdog, '_spent', {None: 5.0, watchdog.STEP: 7.0})
  monkeypatch.setattr(watchdog, '_phase', (None, ''))

  def move(seconds):
    time[0] += seconds

  return move


def test_phases_are_those_of_the_training(now):
  before = watchdog.spent()
  now(1.5)
  watchdog.enter(watchdog.DATA, 'step 1')
  now(0.25)
  watchdog.enter(watchdog.STEP, 'step 1')
  now(2)
  with watchdog.during(watchdog.COMPILATION):
    now(4)
  now(3)
  watchdog.enter(watchdog.SAVE, 'step 1')
  now(0.1)  # Less than a hundredth.
  assert clock.describe_phases(before) == (
      '10.8 s: 5.0 s in steps, 4.0 s waiting for compilation, '
      '0.2 s waiting for data, 1.5 s starting')


def test_without_a_step_there_is_nothing_to_say(now):
  before = watchdog.spent()
  now(1.5)
  assert clock.describe_phases(before) is None


def test_training_says_what_it_took_its_time_for(tmp_path, capsys):
  config = config_lib.base()
  config.steps, config.batch_size = 2, 16
  config.data.name = 'synthetic'
  config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
  config.distillation.alpha = 0.0
  config.baseline = config.report.write = False
  haikd.train(config, tmp_path)
  line, = (x for x in capsys.readouterr().out.splitlines()
           if x.startswith('student took '))
  assert ' s starting' in line
