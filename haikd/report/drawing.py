"""A figure of matplotlib that becomes SVG in a page, light or dark.

Texts and axes take the colour of the page's text; the curves' colours can be
told apart on both backgrounds. Needs matplotlib, from `haikd[report]`.
"""

import io
import re
from typing import Any
import warnings

COLORS = dict(teacher='#8a8f98', student_alone='#e08a2e', student='#3987e5')
TERM_COLORS = ('#3987e5', '#2ea37a', '#e08a2e', '#a06bd0', '#d8566a', '#3fb0c4')

INK = '#010203'  # Becomes the colour of the page's text.
_STYLE: Any = {
    'svg.fonttype': 'none', 'svg.hashsalt': 'haikd', 'font.size': 9,
    'font.family': 'sans-serif', 'text.color': INK, 'axes.labelcolor': INK,
    'axes.edgecolor': INK, 'xtick.color': INK, 'ytick.color': INK,
    'axes.titlecolor': INK, 'axes.titlesize': 10, 'axes.titleweight': 'bold',
    'axes.titlelocation': 'left', 'axes.facecolor': 'none',
    'figure.facecolor': 'none', 'axes.spines.top': False,
    'axes.spines.right': False, 'axes.linewidth': 0.7, 'grid.color': INK,
    'grid.alpha': 0.15, 'grid.linewidth': 0.6, 'legend.frameon': False,
    'legend.fontsize': 8.5, 'text.parse_math': False}
_MARGINS = dict(left=0.62, right=0.12, bottom=0.5, top=0.32)  # Inches.
_GAP = 0.35  # Inches between two axes.


def is_available() -> bool:
  """Returns whether matplotlib is installed."""
  try:
    import matplotlib  # noqa: F401  An extra.
  except ImportError:
    return False
  return True


class Drawing:
  """A figure that becomes SVG at the end of its context.

  Attributes:
    figure: matplotlib's.
    svg: the SVG element, once the context is left.
    content: the file.

  Args:
    width: inches.
    height: inches.
    kind: 'png' or 'svg' for a file of its own, black on white; '' for a part of
      a page.
  """

  def __init__(self, width: float, height: float, kind: str = ''):
    import matplotlib  # An extra, and slow to import.
    from matplotlib import figure
    self._style = matplotlib.rc_context(_STYLE)
    self._make = lambda: figure.Figure(figsize=(width, height))
    self.figure: Any = None
    self._kind = kind
    self.svg, self.content = '', b''

  def __enter__(self) -> 'Drawing':
    self._style.__enter__()
    self.figure = self._make()
    return self

  def __exit__(self, kind: Any, *rest: Any) -> None:
    try:
      if kind is None:
        self._save()
    finally:
      self._style.__exit__(kind, *rest)

  def _save(self):
    content = io.BytesIO()
    with warnings.catch_warnings():
      if self._kind != 'png':
        # Who shows an SVG has the letters that matplotlib's own font lacks.
        warnings.filterwarnings('ignore', 'Glyph .* missing')
      if self._kind:
        self.figure.savefig(
            content, format=self._kind, dpi=150, facecolor='white')
        self.content = content.getvalue()
      else:
        self.figure.savefig(content, format='svg', metadata={'Date': None})
        self.svg = _inline(content.getvalue().decode())

  def axes(self, columns: int = 1, *, share: bool = False,
           **margins: float) -> list[Any]:
    """Returns the axes of the figure, as a list.

    A layout of matplotlib's own would take as long as all else.

    Args:
      columns: how many axes stand side by side.
      share: whether they have one vertical axis.
      **margins: inches, in place of those of all figures.
    """
    margins = {**_MARGINS, **margins}
    width, height = self.figure.get_size_inches()
    gap = _GAP if share else _GAP + 0.1
    inner = width - margins['left'] - margins['right']
    self.figure.subplots_adjust(
        left=margins['left'] / width, right=1 - margins['right'] / width,
        bottom=margins['bottom'] / height, top=1 - margins['top'] / height,
        wspace=gap * columns / max(inner - gap * (columns - 1), 1))
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
  svg = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"',
               r'role="img" style="width: \1pt"', svg, count=1)
  return svg.replace(INK, 'currentColor').replace('xlink:href', 'href')
