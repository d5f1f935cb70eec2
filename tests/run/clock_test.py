"""What a training took its time for, in words."""

import itertools
import json

import pytest

import haikd
from haikd import config as config_lib
from haikd.processes import watchdog
from haikd.run import clock
from haikd.run import rates
from haikd.run import training


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


def spend(now, **seconds):
  """Spends seconds in phases, by their names in `watchdog`."""
  for phase, duration in seconds.items():
    watchdog.enter(getattr(watchdog, phase), '')
    now(duration)
  watchdog.enter(None, '')


def test_phases_are_those_of_the_training(now):
  times = clock.Clock(0.0, {}, watchdog.spent())
  now(1.5)
  spend(now, DATA=0.2, STEP=2)
  with watchdog.during(watchdog.COMPILATION):
    now(4)
  spend(now, STEP=3, SAVE=0.1)  # Less than a hundredth is not said.
  assert clock.describe_phases(times.phases()) == (
      '10.8 s: 5.0 s in steps, 4.0 s waiting for compilation, '
      '0.2 s waiting for data, 1.5 s starting')


def test_phases_of_all_starts_are_added_up(now):
  saved = dict(steps=10.0, saving=2.0, redone=1.0)
  times = clock.Clock(13.0, saved, watchdog.spent())
  spend(now, STEP=3, EVALUATION=4)
  assert times.phases() == dict(
      steps=13.0, saving=2.0, redone=1.0, evaluation=4.0, data=0.0,
      compilation=0.0, starting=0.0)


def test_steps_that_a_kill_has_lost_are_counted_apart(now):
  """The last that was logged is step 5; training goes on from step 3."""
  times = clock.Clock(0.0, {}, watchdog.spent(), lost=5)
  spend(now, STEP=1)
  times.passed(4)
  assert times.phases()['redone'] == 1.0
  spend(now, STEP=1)
  times.passed(5)
  spend(now, STEP=7)
  times.passed(6)
  assert (times.phases()['redone'], times.phases()['steps']) == (2.0, 7.0)


def test_steps_that_a_rollback_has_lost_are_counted_apart(now):
  """From step 5 to step 3, and before step 5 is reached, again."""
  times = clock.Clock(0.0, {}, watchdog.spent())
  spend(now, STEP=10)
  times.passed(4)
  times.lose(5)
  spend(now, STEP=1)
  times.passed(4)
  times.lose(4)
  spend(now, STEP=3)
  times.passed(4)
  assert (times.phases()['redone'], times.phases()['steps']) == (4.0, 10.0)
  spend(now, STEP=2)  # Step 5 is still lost.
  times.passed(5)
  spend(now, STEP=20)
  assert (times.phases()['redone'], times.phases()['steps']) == (6.0, 30.0)


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


def test_killed_run_says_what_it_did_again(run, tmp_path, monkeypatch):
  flags = ('--config.steps=12', '--config.checkpoint_every=5',
           '--config.log_every=2')
  requested, steps = training.distributed.stop_requested, itertools.count(1)

  def kill():
    if next(steps) == 9 + 4:  # The teacher takes 4 steps.
      raise KeyboardInterrupt
    return requested()

  with monkeypatch.context() as patch:
    patch.setattr(training.distributed, 'stop_requested', kill)
    run(*flags)
  assert run(*flags)[0] == 0
  rows = [json.loads(line) for line in (
      tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  time, = (row for row in rows if row['split'] == rates.TIME)
  assert 0 < time['redone'] < time['steps'] + time['redone']
