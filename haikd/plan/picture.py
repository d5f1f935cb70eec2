"""Draws plans: memory of a chip, and time of a step by number of chips."""

from collections.abc import Sequence
import io
import pathlib
from typing import Optional

from haikd.engine import peaks
from haikd.plan import estimate as estimate_lib
from haikd.storage import files
from haikd.storage import paths

FILE = 'plan.png'

_PARTS = (('parameters', '#1f6fb4'), ('optimizer', '#4aa8b8'),
          ('average', '#8e5bb5'), ('teacher', '#8a8a8a'),
          ('batch', '#2e9e6b'), ('other', '#222222'),
          ('during the step', '#d9822b'))
_TIMES = (('compute', '#1f6fb4'), ('memory', '#2e9e6b'),
          ('links', '#d9822b'), ('network', '#c2485b'))


def plot_plans(
    workdir: files.Path, estimates: Sequence[estimate_lib.Estimate]
) -> Optional[pathlib.PurePath]:
  """Draws plans.

  Needs matplotlib, from `haikd[report]`; without it, prints a line.

  Args:
    workdir: an existing folder.
    estimates: of one config, on several topologies.

  Returns:
    The path of the picture, `plan.png` in the workdir; None without matplotlib.
  """
  try:
    from matplotlib import figure  # An extra, and slow to import.
  except ImportError:
    print(f"For {FILE}, install matplotlib: pip install 'haikd[report]'.")
    return None
  drawing = figure.Figure(figsize=(11, 4.8), dpi=150, layout='constrained')
  memory, time = drawing.subplots(1, 2)
  _draw_memory(memory, estimates)
  _draw_times(time, estimates)
  path = paths.as_path(workdir) / FILE
  content = io.BytesIO()
  drawing.savefig(content, format='png')
  paths.replace(path, content.getvalue())
  return path


def parts(estimate: estimate_lib.Estimate) -> dict[str, float]:
  """Returns the bytes of a bar: the state by category, and the rest."""
  sizes = dict(estimate.state)
  sizes['during the step'] = max(estimate.peak - sum(sizes.values()), 0.0)
  return sizes


def _draw_memory(axes, estimates):
  """Draws a bar a topology, and a mark at its memory."""
  names = [x.topology for x in estimates]
  floor = [0.0] * len(estimates)
  for part, color in _PARTS:
    heights = [parts(x)[part] / peaks.GIB for x in estimates]
    if any(heights):
      axes.bar(names, heights, bottom=floor, color=color, label=part, width=0.6)
    floor = [low + height for low, height in zip(floor, heights)]
  for i, x in enumerate(estimates):
    if x.available is not None:
      axes.hlines(x.available / peaks.GIB, i - 0.4, i + 0.4, color='#c2485b',
                  lw=2, label=None if i else 'available')
  axes.set_xticks(range(len(names)), names, fontsize=8)
  _dress(axes, 'Memory of a chip', '', 'GiB')


def _draw_times(axes, estimates):
  """Draws the bounds of a step's time against the number of chips."""
  known = sorted((x for x in estimates if x.bound is not None),
                 key=lambda x: x.devices)
  chips_ = [x.devices for x in known]
  for name, color in _TIMES:
    times = [1e3 * x.seconds[name] for x in known]
    if any(times):
      axes.plot(chips_, times, color=color, lw=1.4, marker='o', ms=3.5,
                label=name)
  if known:
    axes.plot(chips_, [1e3 * x.bound for x in known], color='#222222', lw=2,
              label='a step, at least')
    if all(x.exposed is not None for x in known):
      axes.plot(chips_, [1e3 * x.exposed for x in known], color='#222222',
                lw=1.4, ls='--', label='with what is not hidden')
    axes.set_xscale('log', base=2)
    axes.set_xticks(chips_, [str(n) for n in chips_])
    axes.set_ylim(bottom=0)
  _dress(axes, 'Time of a step, at least', 'chips', 'ms')


def _dress(axes, title, xlabel, ylabel):
  axes.set_title(title, loc='left', fontsize=11, fontweight='bold')
  axes.set_xlabel(xlabel)
  axes.set_ylabel(ylabel)
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.25, lw=0.6, axis='y')
  if axes.has_data():
    axes.legend(frameon=False, fontsize=8, loc='upper center', ncols=4,
                bbox_to_anchor=(0.5, -0.12 if not xlabel else -0.16))
