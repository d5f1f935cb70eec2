"""The section of a report on speed: where the time of a run went."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from haikd.report import page

_SPLIT = 'time'
_SPEEDS = dict(  # Metrics of a line of training, and how they are shown.
    examples_per_second=('examples/s', '{:,.0f}'.format),
    tokens_per_second=('tokens/s', '{:,.0f}'.format),
    mfu=('MFU', '{:.1%}'.format),
    mfu_teacher=('of it the teacher', '{:.1%}'.format),
    waiting_for_data=('waiting for data', '{:.1%}'.format),
    peak_device_mib=('peak of a device, MiB', '{:,.0f}'.format),
    peak_process_mib=('peak of the process, MiB', '{:,.0f}'.format))


def section(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
            titles: Mapping[str, str], programs: Sequence[Sequence[str]],
            columns: Sequence[str]) -> Optional[page.Section]:
  """Returns what each network's training took its time for, and its speed.

  Args:
    runs: the rows of metrics of each network, of one run.
    titles: `{network: title}`.
    programs: the rows of the table of programs that were compiled.
    columns: its headings.

  Returns:
    A section; None if nothing was trained or compiled.
  """
  phases, speeds = [], []
  for network, (rows,) in runs.items():
    title = page.escape(titles[network])
    found = [x for x in rows if x['split'] == _SPLIT]
    if found:
      phases.append((title, found[-1]))
    found = [x for x in rows if x['split'] == 'train']
    if found:
      speeds.append((title, found[-1]))
  body = ''
  if phases:
    names = [x for x in phases[0][1] if x not in ('step', 'split')]
    body += page.table(
        ['seconds', *names],
        [[title, *(f'{row.get(name, 0.0):,.1f}' for name in names)]
         for title, row in phases])
  shown = [name for name in _SPEEDS if any(name in row for _, row in speeds)]
  if shown:
    body += page.table(
        ['last line of training', *(_SPEEDS[name][0] for name in shown)],
        [[title, *(_SPEEDS[name][1](float(row[name])) if name in row else '–'
                   for name in shown)] for title, row in speeds])
  if programs:
    body += page.table(columns, [list(map(page.escape, x)) for x in programs])
  return page.Section('Time', body) if body else None
