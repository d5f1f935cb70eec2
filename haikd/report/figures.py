"""Draws a report's figures as SVG, see `drawing`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.report import drawing as drawing_lib
from haikd.report import statistics

_COLORS, _INK = drawing_lib.COLORS, drawing_lib.INK


class Spread(NamedTuple):
  """Values, such as one for each seed, and their mean.

  Attributes:
    label: what they are of.
    values: `[n]`.
    mean: of the values.
    half_width: of the interval around the mean.
  """

  label: str
  values: Sequence[float]
  mean: float
  half_width: float


def spreads(panels: Mapping[str, Sequence[Spread]], *, title: str,
            kind: str) -> bytes:
  """Draws values with their means and intervals, in a file of its own.

  Args:
    panels: `{title: spreads}`.
    title: of the figure.
    kind: 'png' or 'svg'.
  """
  labels = [spread.label for spread in next(iter(panels.values()))]
  columns = min(len(panels), 3)
  lines = -(-len(panels) // columns)
  height = 0.9 + 0.3 * len(labels)
  with drawing_lib.Drawing(
      1.2 + 3.2 * columns, 0.4 + lines * height, kind) as drawing:
    drawing.figure.set_layout_engine('constrained')
    drawing.figure.suptitle(title, fontsize=11)
    grid = drawing.figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, (name, found) in zip(grid.flat, panels.items()):
      for row, spread in enumerate(found):
        axes.plot(spread.values, [row] * len(spread.values), 'o', ms=4,
                  color=_COLORS['teacher'], alpha=0.7, mew=0)
        axes.errorbar(spread.mean, row, xerr=spread.half_width, fmt='D', ms=5,
                      color=_COLORS['student'], capsize=3)
      axes.axvline(0, color=_INK, lw=0.8, ls='--')
      axes.set(title=name, ylim=(len(found) - 0.5, -0.5))
      axes.set_yticks(range(len(labels)), labels)
      axes.locator_params(axis='x', nbins=5)  # More would overlap.
    _hide(grid.flat[len(panels):])
  return drawing.content


def class_bars(accuracies: Mapping[str, np.ndarray], labels: Sequence[str],
               titles: Mapping[str, str]) -> str:
  """Draws the accuracy of each class, a mark for each network.

  Args:
    accuracies: `{network: [V]}`.
    labels: the names of the classes.
    titles: `{network: title}`.
  """
  names = [_short(label) for label in labels]
  with drawing_lib.Drawing(9.4, 0.9 + 0.24 * len(labels)) as drawing:
    axes = drawing.axes(left=0.25 + 0.075 * max(map(len, names)))[0]
    rows = np.arange(len(labels))
    values = np.stack(list(accuracies.values()))
    axes.hlines(rows, values.min(axis=0), values.max(axis=0), color=_INK,
                alpha=0.3, lw=1)
    for i, (network, accuracy) in enumerate(accuracies.items()):
      # Beside one another, so that equal values hide nothing.
      offset = 0.2 * (i - (len(accuracies) - 1) / 2)
      axes.plot(accuracy, rows + offset, 'o', ms=6, color=_COLORS[network],
                label=titles[network])
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f'{100 * value:.4g}%')
    axes.grid(True, axis='x')
    axes.margins(x=0.03)
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=3)
  return drawing.svg


def reliability(calibrations: Mapping[str, statistics.Calibration],
                titles: Mapping[str, str], xlabel: str) -> str:
  """Draws how often networks are right over how sure they are.

  Args:
    calibrations: of each network.
    titles: `{network: title}`.
    xlabel: what confidence is.
  """
  with drawing_lib.Drawing(9.4, 3.2) as drawing:
    panels = drawing.axes(len(calibrations), share=True)
    for axes, (network, values) in zip(panels, calibrations.items()):
      count = len(values.share)
      edges = np.arange(count) / count
      axes.bar(edges, np.nan_to_num(values.accuracy), width=1 / count,
               align='edge', color=_COLORS[network], alpha=0.8, lw=0)
      axes.bar(edges, values.share, width=1 / count, align='edge', fill=False,
               edgecolor=_INK, lw=0.6, alpha=0.6)
      axes.plot([0, 1], [0, 1], color=_INK, lw=0.8, ls='--')
      axes.plot(values.confidence, values.accuracy, 'o', ms=3, color=_INK)
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
  rows = max(len(x) for x in panels.values())
  height = float(np.clip(1.2 + 0.3 * rows * (2 if ticks else 1), 2.4, 4.2))
  with drawing_lib.Drawing(9.4, height) as drawing:
    margins: Any = dict(left=0.9, bottom=0.9) if ticks else {}
    axes_row = drawing.axes(
        max(len(panels), 2), right=1.0 if label else 0.12, **margins)
    for number, (axes, (title, values)) in enumerate(
        zip(axes_row, panels.items())):
      # Most attention goes to few places: the root shows the rest.
      picture = axes.imshow(
          values if top else np.sqrt(values), vmin=0, vmax=top, cmap='viridis',
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
    _hide(axes_row[len(panels):])
    if label:
      _, bottom, _, height = axes_row[0].get_position().bounds
      place = drawing.figure.add_axes((0.91, bottom, 0.015, height))
      drawing.figure.colorbar(picture, cax=place, label=label).outline.set(
          visible=False)
  return drawing.svg


def grids(image: np.ndarray, maps: Mapping[str, np.ndarray], *,
          title: str) -> str:
  """Draws maps of an image beside it.

  Args:
    image: `[h, w, C]`, from 0 to 1.
    maps: `{title: [rows, columns]}`.
    title: of the image.
  """
  with drawing_lib.Drawing(7.2, 2.5) as drawing:
    first, *rest = drawing.axes(
        1 + len(maps), left=0.1, right=0.1, bottom=0.05)
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    first.imshow(pixels, cmap='gray', vmin=0, vmax=1)
    first.set_title(title)
    for axes, (name, values) in zip(rest, maps.items()):
      axes.imshow(values, cmap='viridis', vmin=0)
      axes.set_title(name)
    for axes in (first, *rest):
      axes.set_axis_off()
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
  with drawing_lib.Drawing(9.4, 3.2) as drawing:
    axes_row = drawing.axes(max(len(panels), 2), share=True)
    for axes, (title, (x, y, color)) in zip(axes_row, panels.items()):
      axes.plot(x, y, 'o', ms=3, color=color, alpha=0.6, mew=0)
      if diagonal:
        ends = [min(np.min(x), np.min(y)), max(np.max(x), np.max(y))]
        axes.plot(ends, ends, color=_INK, lw=0.8, ls='--')
      axes.set(title=title, xlabel=xlabel)
      axes.grid(True)
    axes_row[0].set_ylabel(ylabel)
    _hide(axes_row[len(panels):])
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
  with drawing_lib.Drawing(4.6, 3.1) as drawing:
    axes = drawing.axes()[0]
    both = np.concatenate(list(values.values()))
    edges = np.linspace(both.min(), max(both.max(), both.min() + 1e-6), 31)
    for network, numbers in values.items():
      axes.hist(numbers, edges, color=_COLORS[network], alpha=0.55,
                label=titles[network])
    axes.set(title=title, xlabel=xlabel, ylabel='examples')
    axes.legend()
  return drawing.svg


def _hide(rest):
  for axes in rest:
    axes.set_visible(False)


def _short(label):
  return label if len(label) <= 24 else f'{label[:23]}…'
