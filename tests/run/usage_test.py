"""Speed, MFU and waiting for data, with a clock that the test moves."""

import itertools
import json
import threading
import types

import jax
import numpy as np
import pytest

from haikd.core import base
from haikd.engine import counting
from haikd.processes import watchdog
from haikd.run import peak as peak_lib
from haikd.run import rates
from haikd.run import usage

PEAK = peak_lib.Peak(1000.0, 'float32', True)


@pytest.fixture
def now(monkeypatch):
  """A clock that stands; the returned function moves it."""
  time = [0.0]
  for module in (watchdog, usage):
    monkeypatch.setattr(module, 'time', types.SimpleNamespace(
        monotonic=lambda: time[0]))
  monkeypatch.setattr(watchdog, '_since', 0.0)
  monkeypatch.setattr(watchdog, '_spent', {})
  monkeypatch.setattr(watchdog, '_phase', (None, ''))

  def move(seconds):
    time[0] += seconds

  return move


class Measured:
  """A usage of two stages, the second from step 10 on; 8 examples a batch."""

  def __init__(self, monkeypatch, mask):
    traces = [types.SimpleNamespace(jaxpr=number) for number in (0, 1)]
    stages = [types.SimpleNamespace(
        abstract_state=None, abstract_frozen=None,
        train_step=types.SimpleNamespace(trace=lambda *_, x=x: x))
        for x in traces]
    program = types.SimpleNamespace(
        mesh=types.SimpleNamespace(local_devices=jax.devices()[:1], size=1),
        stages=stages, stage_of=lambda step: int(step > 10))
    monkeypatch.setattr(usage.abstract, 'batch_of', lambda *_: None)
    monkeypatch.setattr(
        usage.counting, 'count', lambda number, size: counting.Counted(
            [100.0, 300.0][number], 0, (), 0, [25.0, 0.0][number]))
    monkeypatch.setattr(usage.peak_lib, 'of_devices', lambda *_: PEAK)
    self.batch = base.Batch(np.zeros(mask.shape, np.int32), mask)
    self.usage = usage.Usage(program, self.batch, 'float32')

  def step(self, now, data, device):
    """A step that waits for data and then computes."""
    watchdog.enter(watchdog.DATA, '')
    self.usage.next(iter([self.batch]))
    now(data)
    watchdog.enter(watchdog.STEP, '')
    now(device)


@pytest.fixture
def measured(monkeypatch):
  made = []

  def make(mask=np.ones((8, 4), bool)):
    made.append(Measured(monkeypatch, mask))
    return made[-1]

  yield make
  for one in made:
    one.usage.close()


def test_speed_is_of_steps_and_their_data_alone(now, measured):
  one = measured(np.ones(8, bool))
  for _ in range(4):
    one.step(now, data=0.5, device=1.5)
    for phase in (watchdog.COMPILATION, watchdog.EVALUATION, watchdog.SAVE):
      with watchdog.during(phase):
        now(100)
  row = one.usage.row(4)
  assert row[rates.EXAMPLES] == pytest.approx(4 * 8 / (4 * 2.0))
  assert rates.TOKENS not in row


def test_tokens_are_those_that_are_no_padding(now, measured):
  mask = np.arange(4) < np.array([4, 3, 2, 1, 4, 4, 4, 0])[:, None]  # 22.
  one = measured(mask)
  for _ in range(3):
    one.step(now, data=0, device=2)
  assert one.usage.row(3)[rates.TOKENS] == pytest.approx(22 / 2)


def test_mfu_is_of_products_and_known_from_the_second_row_on(now, measured):
  one = measured()
  one.step(now, data=0, device=0.5)
  assert rates.MFU not in one.usage.row(1)
  one.usage.prepare(1)
  one.step(now, data=0, device=0.5)
  row = one.usage.row(2)
  # 100 operations in half a second, where 500 are possible.
  assert row[rates.MFU] == pytest.approx(0.2)
  assert row[rates.MFU_OF_TEACHER] == pytest.approx(0.05)
  one.usage.start(10)
  one.step(now, data=0, device=1)
  assert rates.MFU not in one.usage.row(11)  # Of the second stage.
  one.usage.prepare(11)
  # The mean of all: 2 * 100 + 300 operations in 2 of 2 seconds.
  assert "; MFU 25% (the teacher's forward pass 2.5%) of a measured 1e-09 " in (
      one.usage.describe())


def test_row_over_the_end_of_a_stage_has_the_steps_of_both(now, measured):
  one = measured()
  one.usage.start(9)
  one.step(now, data=0, device=0.5)
  one.usage.prepare(10)
  one.usage.prepare(11)
  one.usage.start(8)
  for _ in range(4):  # 9, 10, 11 and 12: 2 * 100 + 2 * 300 operations.
    one.step(now, data=0, device=0.5)
  row = one.usage.row(12)
  assert row[rates.MFU] == pytest.approx(800 / 2000)


def test_going_back_takes_no_time_from_the_next_row(now, measured):
  one = measured(np.ones(8, bool))
  one.step(now, data=0, device=2)
  one.usage.row(1)
  one.step(now, data=0, device=50)  # It is lost.
  one.usage.start(1)
  one.step(now, data=0, device=2)
  assert one.usage.row(2)[rates.EXAMPLES] == pytest.approx(8 / 2)


def test_training_goes_on_without_mfu_where_it_cannot_be_measured(
    now, measured, monkeypatch, caplog):
  one = measured()

  def fail(*unused):
    raise OverflowError('too large')

  monkeypatch.setattr(usage.counting, 'count', fail)
  one.step(now, data=0, device=1)
  with caplog.at_level('INFO', 'haikd'):
    one.usage.prepare(1)
    one.usage.prepare(2)
  assert [x.getMessage() for x in caplog.records] == [
      'MFU is left out, since the operations of a step could not be measured '
      '(too large).']
  assert rates.MFU not in one.usage.row(1)


def test_nothing_is_counted_while_programs_are_compiled(now, measured):
  one = measured()
  compiling = usage.futures.Future()
  one.usage._program.stages[0].train_step.finish = lambda: compiling
  for step, is_done in ((1, False), (2, True)):
    if is_done:
      compiling.set_result(None)
    one.step(now, data=0, device=1)
    one.usage.row(step)
    one.usage.prepare(step)
    one.step(now, data=0, device=1)
    assert (rates.MFU in one.usage.row(step)) == is_done


class Result:
  """What a device computes until it is told to end."""

  def __init__(self):
    self.is_done = threading.Event()

  def block_until_ready(self):
    assert self.is_done.wait(60)
    return self


@pytest.mark.parametrize('ends, waited', [
    ('before', 3.0),  # The device has nothing to do all the time.
    ('meanwhile', 2.0),
    ('after', 0.0),  # The batch is there before the device needs it.
])
def test_waiting_for_data_is_that_of_the_device(now, measured, ends, waited):
  one, result = measured(), Result()
  now(1)
  watchdog.enter(watchdog.STEP, '')
  one.usage.dispatched(result)

  def end():
    result.is_done.set()
    while one.usage._ends._is_busy:
      pass

  def batches():
    now(1)
    if ends == 'meanwhile':
      end()
    now(2)
    yield one.batch

  if ends == 'before':
    end()
  watchdog.enter(watchdog.DATA, '')
  one.usage.next(batches())
  watchdog.enter(watchdog.STEP, '')
  now(1)
  row = one.usage.row(1)  # A step of 4 seconds.
  assert row[rates.WAITING] == pytest.approx(waited / 4)
  end()


def test_ends_of_short_steps_are_noted_now_and_then(now, measured):
  """A thread that wakes up for each would slow steps of a millisecond."""
  one, noted = measured(), []
  one.usage._ends.close()
  one.usage._ends._results = types.SimpleNamespace(put=noted.append)
  for _ in itertools.repeat(None, 100):
    now(0.001)
    one.usage.dispatched(1)
    one.usage._ends._is_busy = False
  assert len(noted) == pytest.approx(100 * 0.001 / usage._INTERVAL, abs=1)


def test_peak_of_a_known_chip_is_published():
  chip = types.SimpleNamespace(device_kind='TPU v4', platform='tpu')
  peak = peak_lib.of_devices([chip] * 4, 'bfloat16')
  assert peak == (275e12, 'bfloat16', False)
  assert str(peak) == '275 TFLOP/s in bfloat16'


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_peak_of_a_cpu_is_measured_once_and_shared(monkeypatch, dtype):
  monkeypatch.setattr(peak_lib, '_SECONDS', 0.01)
  monkeypatch.setattr(peak_lib, '_SIDE_ON_CPU', 64)
  peak_lib._measured.cache_clear()
  device, other = jax.devices()[:2]
  one, two = (peak_lib.of_devices(devices, dtype)
              for devices in ([device], [device, other]))
  assert one.is_measured and 1e6 < one.flops < 1e14
  assert two.flops == one.flops / 2
  peak_lib._measured.cache_clear()


def test_training_reports_its_speed(run, tmp_path):
  code, out, err = run('--config.steps=8', '--config.log_every=2')
  assert (code, err) == (0, '')
  rows = [json.loads(line) for line in (
      tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  train = [row for row in rows if row['split'] == 'train']
  assert all(row[rates.EXAMPLES] > 0 for row in train)
  assert all(row['peak_process_mib'] > 50 for row in train)
  time, = (row for row in rows if row['split'] == rates.TIME)
  assert time['step'] == 8 and time['steps'] > 0 and time['redone'] == 0
  for title in ('teacher', 'student'):
    line, = (x for x in out.splitlines() if x.startswith(f'{title}: '))
    assert ' examples/s; ' in line and ' MiB of the process' in line
