"""Draws curves over the steps of a run as SVG, see `drawing`."""

from collections.abc import Mapping, Sequence
import types
from typing import NamedTuple, Optional

import numpy as np

from haikd.report import drawing as drawing_lib

_MAX_MARKED = 25  # Points of a curve that are marked.
_NONE: Mapping[str, int] = types.MappingProxyType({})


class Curve(NamedTuple):
  """A curve of a figure.

  Attributes:
    label: in the legend.
    color: of the curve.
    steps: `[n]`.
    values: `[n]`.
    half_width: `[n]`, of the interval around the values; None for none.
    strong: whether it is drawn thicker.
  """

  label: str
  color: str
  steps: Sequence[float]
  values: Sequence[float]
  half_width: Optional[Sequence[float]] = None
  strong: bool = False


def curves(lines: Sequence[Curve], *, title: str, log: bool = False,
           percent: bool = False,
           stages: Mapping[str, int] = _NONE) -> str:
  """Draws curves over steps.

  Args:
    lines: the curves.
    title: of the figure, which says what the values are.
    log: whether values may be drawn on a logarithmic axis.
    percent: whether values are fractions.
    stages: the steps at which stages of the run begin, by their names.
  """
  with drawing_lib.Drawing(4.6, 3.1) as drawing:
    axes, handles = drawing.axes()[0], []
    for name, start in stages.items():
      axes.axvline(start, color=drawing_lib.INK, lw=0.8, ls=':')
      axes.annotate(name, (start, 1), xycoords=('data', 'axes fraction'),
                    xytext=(3, -3), textcoords='offset points', va='top',
                    rotation=90, fontsize='small')
    for line in lines:
      marks = dict(marker='o', ms=3) if len(line.steps) <= _MAX_MARKED else {}
      handles += axes.plot(line.steps, line.values, color=line.color,
                           lw=2 if line.strong else 1.4, **marks)
      if line.half_width is not None:
        middle, half = np.asarray(line.values), np.asarray(line.half_width)
        axes.fill_between(line.steps, middle - half, middle + half,
                          color=line.color, alpha=0.2, lw=0)
    values = np.concatenate([np.asarray(x.values, float) for x in lines])
    values = values[np.isfinite(values)]
    if log and values.size and values.min() > 0 and (
        values.max() > 10 * values.min()):
      axes.set_yscale('log')
    if percent:
      axes.yaxis.set_major_formatter(lambda value, _: f'{100 * value:.4g}%')
    axes.set(title=title, xlabel='step')
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True)
    # With labels of their own, those that begin with _ would be left out.
    axes.legend(handles, [line.label for line in lines])
  return drawing.svg
