"""What is measured of the speed of a training, and how it reads."""

from collections.abc import Iterable, Mapping
from typing import Any

EXAMPLES, TOKENS = 'examples_per_second', 'tokens_per_second'
MFU, MFU_OF_TEACHER = 'mfu', 'mfu_teacher'
WAITING = 'waiting_for_data'
# By whose memory it is, as in `core.memory`.
MEMORY = dict(device='peak_device_mib', process='peak_process_mib')
# What the row of the time that a training took has in place of a split.
TIME = 'time'
# The metrics that differ from run to run.
FIELDS = (EXAMPLES, TOKENS, MFU, MFU_OF_TEACHER, WAITING, *MEMORY.values())


def without(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns rows of metrics without what differs from run to run.

  Args:
    rows: of a file of metrics.
  """
  return [{name: value for name, value in row.items() if name not in FIELDS}
          for row in rows if row['split'] != TIME]


def describe(values: Mapping[str, float]) -> str:
  """Returns metrics of `usage.Usage` in words, for a line of metrics.

  Args:
    values: by the names in `FIELDS`; some may be missing.
  """
  return '  '.join(filter(None, (
      _speed(values), _part('MFU {}', values.get(MFU)),
      _part('{} waiting for data', values.get(WAITING)))))


def summarise(values: Mapping[str, float], peak: Any) -> str:
  """Returns metrics of a training in words, for its last line.

  Args:
    values: by the names in `FIELDS`; some may be missing.
    peak: what MFU is a part of, a `peak.Peak`, or None.
  """
  mfu = _part('MFU {}', values.get(MFU))
  if mfu:
    mfu += _part(" (the teacher's forward pass {})", values[MFU_OF_TEACHER])
    mfu += f' of {peak}'
  return '; '.join(filter(None, (
      _speed(values), mfu, _part('{} waiting for data', values.get(WAITING)),
      *(f'{values[name]:,.0f} MiB of the {owner} at the peak'
        for owner, name in MEMORY.items() if name in values))))


def _speed(values):
  for name, unit in ((TOKENS, 'tokens/s'), (EXAMPLES, 'examples/s')):
    if name in values:
      return f'{values[name]:,.0f} {unit}'
  return ''


def _part(text, share):
  """Returns a text with a percentage; '' below half a percent."""
  if not share or share < 0.005:
    return ''
  return text.format(f'{100 * share:.{0 if share >= 0.1 else 1}f}%')
