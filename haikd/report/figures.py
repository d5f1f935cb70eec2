"""Draws a report's figures as SVG that stands in a page, light or dark.

Texts and axes take the colour of the page's text; the curves' colours can be
told apart on both backgrounds. Needs matplotlib, from `haikd[report]`.
"""

from collections.abc import Mapping, Sequence
import io
import re
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.report import statistics

COLORS = dict(teacher='#8a8f98', student_alone='#e08a2e', student='#3987e5')
TERM_COLORS = ('#3987e5', '#2ea37a', '#e08a2e', '#a06bd0', '#d8566a', '#3fb0c4')

INK = '#010203'  # Becomes the colour of the page's text.
_MAX_MARKED = 25  # Points of a curve that are marked.
_STYLE = {
    'svg.fonttype': 'none', 'svg.hashsalt': 'haikd', 'font.size': 9,
    'font.family': 'sans-serif', 'text.color': INK, 'axes.labelcolor': INK,
    'axes.edgecolor': INK, 'xtick.color': INK, 'ytick.color': INK,
    'axes.titlecolor': INK, 'axes.titlesize': 10, 'axes.titleweight': 'bold',
    'axes.titlelocation': 'left', 'axes.facecolor': 'none',
    'figure.facecolor': 'none', 'axes.spines.top': False,
    'axes.spines.right': False, 'axes.linewidth': 0.7, 'grid.color': INK,
    'grid.alpha': 0.15, 'grid.linewidth': 0.6, 'legend.frameon': False,
    'legend.fontsize': 8.5, 'figure.constrained_layout.use': True}


class Curve(NamedTuple):
  """A curve of a figure.

  Attributes:
    label: in the legend.
    color: of the curve.
    steps: `[n]`.
    values: `[n]`.
    half_width: `[n]`, of the interval around the values; None for none.
    strong: whether it is drawn thicker.
    dashed: whether it is drawn dashed.
  """

  label: str
  color: str
  steps: Sequence[float]
  values: Sequence[float]
  half_width: Optional[Sequence[float]] = None
  strong: bool = False
  dashed: bool = False


def is_available() -> bool:
  """Returns whether matplotlib is installed."""
  try:
    import matplotlib  # noqa: F401  An extra.
  except ImportError:
    return False
  return True


def curves(lines: Sequence[Curve], *, title: str, ylabel: str,
           log: bool = False, percent: bool = False) -> str:
  """Draws curves over steps.

  Args:
    lines: the curves.
    title: of the figure.
    ylabel: of the vertical axis.
    log: whether values may be drawn on a logarithmic axis.
    percent: whether values are fractions.
  """
  with _Drawing(4.6, 3.1) as drawing:
    axes = drawing.axes()[0]
    for line in lines:
      marks = dict(marker='o', ms=3) if len(line.steps) <= _MAX_MARKED else {}
      axes.plot(line.steps, line.values, color=line.color, label=line.label,
                lw=2 if line.strong else 1.4,
                ls='--' if line.dashed else '-', **marks)
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
    axes.set(title=title, xlabel='step', ylabel=ylabel)
    axes.grid(True)
    axes.legend()
  return drawing.svg


def class_bars(accuracies: Mapping[str, np.ndarray], labels: Sequence[str],
               titles: Mapping[str, str]) -> str:
  """Draws the accuracy of each class, a mark for each network.

  Args:
    accuracies: `{network: [V]}`.
    labels: the names of the classes.
    titles: `{network: title}`.
  """
  with _Drawing(9.4, 0.9 + 0.24 * len(labels)) as drawing:
    axes = drawing.axes()[0]
    rows = np.arange(len(labels))
    values = np.stack(list(accuracies.values()))
    axes.hlines(rows, values.min(axis=0), values.max(axis=0), color=INK,
                alpha=0.3, lw=1)
    for network, accuracy in accuracies.items():
      axes.plot(accuracy, rows, 'o', ms=6, color=COLORS[network],
                label=titles[network])
    axes.set_yticks(rows, [_short(label) for label in labels])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f'{100 * value:.4g}%')
    axes.grid(True, axis='x')
    axes.margins(x=0.03)
    drawing.figure.legend(loc='outside upper left', ncols=3)
  return drawing.svg


def reliability(calibrations: Mapping[str, statistics.Calibration],
                titles: Mapping[str, str], xlabel: str) -> str:
  """Draws how often networks are right over how sure they are.

  Args:
    calibrations: of each network.
    titles: `{network: title}`.
    xlabel: what confidence is.
  """
  with _Drawing(9.4, 3.2) as drawing:
    panels = drawing.axes(len(calibrations), share=True)
    for axes, (network, values) in zip(panels, calibrations.items()):
      count = len(values.share)
      edges = np.arange(count) / count
      axes.bar(edges, np.nan_to_num(values.accuracy), width=1 / count,
               align='edge', color=COLORS[network], alpha=0.8, lw=0)
      axes.bar(edges, values.share, width=1 / count, align='edge', fill=False,
               edgecolor=INK, lw=0.6, alpha=0.6)
      axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls='--')
      axes.plot(values.confidence, values.accuracy, 'o', ms=3, color=INK)
      axes.set(title=f'{titles[network]}: ECE {100 * values.error:.2f}%',
               xlabel=xlabel, xlim=(0, 1), ylim=(0, 1.02))
    panels[0].set_ylabel('share that is right')
  return drawing.svg


def matrices(panels: Mapping[str, np.ndarray], *, xlabel: str, ylabel: str,
             label: str = '', top: Optional[float] = 1.0,
             ticks: Sequence[Sequence[str]] = ()) -> str:
  """Draws matrices side by side.

  Args:
    panels: `{title: [rows, columns]}`.
    xlabel: of the columns.
    ylabel: of the rows.
    label: of the colours.
    top: the value of the strongest colour; None for each panel's largest.
    ticks: the names of rows and columns of each panel, if they have names.
  """
  rows, columns = (max(x.shape[i] for x in panels.values()) for i in (0, 1))
  height = float(np.clip(1.2 + 0.3 * rows * (2 if ticks else 1), 2.4, 4.2))
  with _Drawing(9.4, height) as drawing:
    axes_row = drawing.axes(len(panels))
    for number, (axes, (title, values)) in enumerate(
        zip(axes_row, panels.items())):
      picture = axes.imshow(
          values, vmin=0, vmax=top or np.max(values), cmap='viridis',
          aspect='auto' if not ticks else 'equal', interpolation='nearest')
      if values.size <= 150 and not ticks:
        for (i, j), value in np.ndenumerate(values):
          axes.text(j, i, f'{value:.2f}', ha='center', va='center', fontsize=8,
                    color='#111' if value > 0.6 else '#eee')
      axes.set(title=title, xlabel=xlabel, ylabel='' if number else ylabel)
      for axis, count in ((axes.xaxis, values.shape[1]),
                          (axes.yaxis, values.shape[0])):
        if ticks:
          names = ticks[number][:count]
          axis.set_ticks(range(len(names)), names, fontsize=7)
        else:
          axis.set_ticks(range(0, count, max(count // 12, 1)))
      if ticks:
        axes.tick_params(axis='x', rotation=90)
      axes.spines[:].set_visible(False)
    if label:
      drawing.figure.colorbar(picture, ax=axes_row, label=label).outline.set(
          visible=False)
  del columns
  return drawing.svg


def scatter(panels: Mapping[str, tuple[Any, Any, str]], *, xlabel: str,
            ylabel: str, diagonal: bool = True) -> str:
  """Draws points in panels side by side.

  Args:
    panels: `{title: (x, y, color)}`.
    xlabel: of all panels.
    ylabel: of all panels.
    diagonal: whether to draw the line of equal values.
  """
  with _Drawing(9.4, 3.2) as drawing:
    axes_row = drawing.axes(max(len(panels), 2), share=True)
    for axes, (title, (x, y, color)) in zip(axes_row, panels.items()):
      axes.plot(x, y, 'o', ms=3, color=color, alpha=0.6, mew=0)
      if diagonal:
        ends = [min(np.min(x), np.min(y)), max(np.max(x), np.max(y))]
        axes.plot(ends, ends, color=INK, lw=0.8, ls='--')
      axes.set(title=title, xlabel=xlabel)
      axes.grid(True)
    for axes in axes_row[len(panels):]:
      axes.set_visible(False)
    axes_row[0].set_ylabel(ylabel)
  return drawing.svg


def histogram(values: Mapping[str, np.ndarray], titles: Mapping[str, str], *,
              title: str, xlabel: str) -> str:
  """Draws how values are distributed, a line for each network.

  Args:
    values: `{network: [n]}`.
    titles: `{network: title}`.
    title: of the figure.
    xlabel: what the values are.
  """
  with _Drawing(4.6, 3.1) as drawing:
    axes = drawing.axes()[0]
    both = np.concatenate(list(values.values()))
    edges = np.linspace(both.min(), max(both.max(), both.min() + 1e-6), 31)
    for network, numbers in values.items():
      axes.hist(numbers, edges, color=COLORS[network], alpha=0.55,
                label=titles[network])
    axes.set(title=title, xlabel=xlabel, ylabel='examples')
    axes.legend()
  return drawing.svg


class _Drawing:
  """A figure that becomes SVG at the end of its context."""

  def __init__(self, width, height):
    import matplotlib  # An extra, and slow to import.
    from matplotlib import figure
    self._style = matplotlib.rc_context(_STYLE)
    self._make = lambda: figure.Figure(figsize=(width, height))
    self.figure: Any = None
    self.svg = ''

  def __enter__(self):
    self._style.__enter__()
    self.figure = self._make()
    return self

  def __exit__(self, kind, *rest):
    try:
      if kind is None:
        content = io.StringIO()
        self.figure.savefig(content, format='svg', metadata={'Date': None})
        self.svg = _inline(content.getvalue())
    finally:
      self._style.__exit__(kind, *rest)

  def axes(self, columns=1, *, share=False):
    """Returns the axes of the figure, as a list."""
    made = self.figure.subplots(1, columns, squeeze=False, sharey=share)
    return list(made[0])


def _inline(svg):
  """Returns the SVG element alone, in the page's colour and fonts."""
  svg = svg[svg.index('<svg'):]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = re.sub(r'<!--.*?-->', '', svg, flags=re.DOTALL)
  svg = re.sub(r' xmlns(:xlink)?="[^"]*"', '', svg)
  # Groups that nothing refers to would have one id in all figures.
  svg = re.sub(r'<g id="[^"]*"', '<g', svg)
  svg = re.sub(r"font:[^;\"]*?'[^\"]*?sans-serif", 'font-family: inherit', svg)
  svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg, count=1)
  return svg.replace(INK, 'currentColor').replace('xlink:href', 'href')


def _short(label):
  return label if len(label) <= 24 else f'{label[:23]}…'
