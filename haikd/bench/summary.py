"""Medians of a case, and the table and file that show them."""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import platform
import statistics
from typing import Any

import jax
import jaxlib

import haikd
from haikd.bench import cases
from haikd.bench import measure
from haikd.run import console

COLUMNS = ('haikd / reference', 'CPU time', 'wall time', 'step, s',
           'reference, s', 'waiting for data', 'trace + lowering + XLA, s',
           'first step, s', 'temp, MiB', 'peak, MiB')


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
  """Returns medians over the rounds of a case.

  Args:
    results: what `measure.run` returns.

  Returns:
    `ratios` of haikd to its reference: for `cpu` and `wall` the median, least
    and most; for `first_step_seconds`, `temp_bytes` and `peak_bytes` a number.
    By side, `step_seconds`, `step_cpu_seconds`, `peak_bytes` and `waiting`, the
    share of a step in which it waits for data.
  """
  first, second = measure.SIDES
  rounds = results['rounds']
  ratios: dict[str, Any] = {}
  for key in ('cpu', 'wall'):
    each = [x[first][key] / x[second][key] for x in rounds]
    ratios[key] = dict(
        median=statistics.median(each), least=min(each), most=max(each))
  sides = {}
  for side in measure.SIDES:
    timed = [x[side] for x in rounds]
    median = lambda key: statistics.median(x[key] / x['steps'] for x in timed)
    sides[side] = dict(
        step_seconds=median('wall'),
        step_cpu_seconds=median('cpu'),
        waiting=statistics.median(x['waiting'] / x['wall'] for x in timed),
        peak_bytes=max(x['peak_bytes'] for x in timed))
  for key in ('first_step_seconds', 'temp_bytes'):
    ratios[key] = results[first][key] / max(results[second][key], 1e-9)
  peaks = [sides[side]['peak_bytes'] for side in measure.SIDES]
  ratios['peak_bytes'] = peaks[0] / peaks[1]
  return dict(ratios=ratios, **sides)


def row(name: str, results: Mapping[str, Any]) -> list[str]:
  """Returns a case's row of the table.

  Args:
    name: the name of the case.
    results: what `measure.run` returns.
  """
  summary = summarise(results)
  sides = [results[side] | summary[side] for side in measure.SIDES]

  def ratio(key):
    x = summary['ratios'][key]
    return f'{x["median"]:.3f} ({x["least"]:.3f}-{x["most"]:.3f})'

  def both(key, unit, form):
    return ' / '.join(format(x[key] / unit, form) for x in sides)

  return [
      name, ratio('cpu'), ratio('wall'),
      *(f'{x["step_seconds"]:.3g}' for x in sides),
      ' / '.join(f'{x["waiting"]:.0%}' for x in sides),
      ' / '.join('+'.join(f'{y:.1f}' for y in x['compiling']) for x in sides),
      both('first_step_seconds', 1, '.1f'),
      both('temp_bytes', 2**20, '.0f'),
      both('peak_bytes', 2**20, '.0f')
  ]


def show(results: Mapping[str, Mapping[str, Any]]) -> None:
  """Prints the table; the first of two numbers is haikd's.

  Args:
    results: `{case: what measure.run returns}`.
  """
  console.table([row(*item) for item in results.items()], COLUMNS)


def write(path: pathlib.Path, command: Sequence[str],
          chosen: Mapping[str, cases.Case],
          results: Mapping[str, Mapping[str, Any]]) -> None:
  """Writes every number to a JSON file.

  Args:
    path: the file.
    command: the command that was run.
    chosen: the cases.
    results: `{case: what measure.run returns}` of the finished cases.
  """
  content = dict(
      command=' '.join(command),
      haikd=haikd.__version__,
      jax=jax.__version__,
      jaxlib=jaxlib.__version__,
      python=platform.python_version(),
      machine=machine(),
      cases={
          name: dict(case=chosen[name], summary=summarise(one), **one)
          for name, one in results.items()
      })
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, indent=1) + '\n')


def machine() -> dict[str, Any]:
  """Describes the machine that the numbers were measured on."""
  model = platform.processor()
  cpus = pathlib.Path('/proc/cpuinfo')
  if cpus.exists():
    names = [line.partition(':')[2].strip()
             for line in cpus.read_text().splitlines()
             if line.startswith('model name')]
    model = names[0] if names else model
  return dict(
      system=platform.platform(),
      cpu=model,
      cores=os.cpu_count(),
      load=os.getloadavg(),
      xla_flags=os.environ.get('XLA_FLAGS', ''),
      platform=os.environ.get('JAX_PLATFORMS', ''))
