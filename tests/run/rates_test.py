"""Speed in words, in a line of metrics and at the end."""

import pytest

from haikd.run import peak
from haikd.run import rates

VALUES = {'loss': 1.0, rates.EXAMPLES: 40.0, rates.TOKENS: 12345.6,
          rates.MFU: 0.314, rates.MFU_OF_TEACHER: 0.0949,
          rates.WAITING: 0.0712, 'peak_device_mib': 2048.4}
PEAK = peak.Peak(312e12, 'bfloat16', False)


@pytest.mark.parametrize('without, words', [
    ((), '12,346 tokens/s  MFU 31%  7.1% waiting for data'),
    ((rates.TOKENS, rates.MFU), '40 examples/s  7.1% waiting for data'),
    (tuple(VALUES), ''),
])
def test_line_has_what_is_known(without, words):
  values = {name: x for name, x in VALUES.items() if name not in without}
  assert rates.describe(values) == words


def test_waiting_that_is_too_short_to_matter_is_left_out():
  assert rates.describe({**VALUES, rates.WAITING: 0.004}) == (
      '12,346 tokens/s  MFU 31%')


def test_end_names_the_peak_the_teacher_and_whose_memory_it_is():
  assert rates.summarise(VALUES, PEAK) == (
      "12,346 tokens/s; MFU 31% (the teacher's forward pass 9.5%) of 312 "
      'TFLOP/s in bfloat16; 7.1% waiting for data; 2,048 MiB of the device at '
      'the peak')


def test_rows_without_times_are_those_that_repeat():
  rows = [{'step': 1, 'split': 'train', **VALUES},
          {'step': 1, 'split': rates.TIME, 'steps': 3.0}]
  assert rates.without(rows) == [{'step': 1, 'split': 'train', 'loss': 1.0}]
