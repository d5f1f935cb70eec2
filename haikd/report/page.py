"""A page of HTML in one file: no links to elsewhere, light and dark."""

from collections.abc import Iterable, Sequence
import html
from typing import NamedTuple

_CSS = """
:root { color-scheme: light dark; --ink: #1c2026; --soft: #5d6672;
  --line: #d9dde3; --paper: #ffffff; --card: #f5f6f8; --mark: #fff0b8;
  --good: #1f7a4d; --bad: #b3372f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3ae;
  --line: #373d45; --paper: #15181c; --card: #1e2228; --mark: #574a17;
  --good: #5fc794; --bad: #ef8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 64rem;
  background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.12rem; margin: 2.2rem 0 .4rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
p.note, figcaption { color: var(--soft); font-size: .88rem; }
nav { font-size: .88rem; margin: .6rem 0; }
nav a { margin-right: .9rem; color: inherit; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  margin: .4rem 0 1rem; }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: .86rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.strong td { font-weight: 650; }
table.words td { text-align: left; white-space: normal; vertical-align: top; }
table.words th { text-align: left; white-space: normal; }
td p { margin: 0 0 .4rem; min-width: 20rem; }
svg { max-width: 100%; height: auto; display: block; }
svg text { font-family: inherit; }
figure { margin: 0; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
.row > figure { flex: 1 1 24rem; min-width: 0; }
.cards { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); }
.card { background: var(--card); border-radius: 6px; padding: .6rem .7rem;
  font-size: .85rem; }
.card img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block;
  border-radius: 4px; margin-bottom: .4rem; background: #8883; }
img.small { image-rendering: pixelated; }
.card dl { margin: 0; display: grid; grid-template-columns: auto 1fr;
  gap: 0 .5rem; line-height: 1.35; }
.card dt { color: var(--soft); white-space: nowrap; }
.card dd { margin: 0; text-align: right; }
.right { color: var(--good); } .wrong { color: var(--bad); }
mark { background: var(--mark); color: inherit; border-radius: 2px; }
code, pre { font: .86rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
pre { background: var(--card); padding: .7rem .9rem; border-radius: 6px;
  overflow-x: auto; }
summary { cursor: pointer; }
"""


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: its heading.
    body: its content, HTML.
  """

  title: str
  body: str


def page(title: str, intro: str, sections: Iterable[Section]) -> str:
  """Returns a complete page.

  Args:
    title: of the page, a text.
    intro: what follows the title, HTML.
    sections: in their order.
  """
  sections = list(sections)
  links = ''.join(f'<a href="#s{i}">{escape(section.title)}</a>'
                  for i, section in enumerate(sections))
  body = '\n'.join(
      f'<section id="s{i}">\n<h2>{escape(section.title)}</h2>\n{section.body}\n'
      '</section>' for i, section in enumerate(sections))
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_CSS}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{intro}
<nav>{links}</nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def escape(text: object) -> str:
  """Returns a text as HTML that shows it."""
  return html.escape(str(text), quote=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *,
          strong: Sequence[int] = (), words: bool = False) -> str:
  """Returns a table.

  Args:
    columns: the headings, texts.
    rows: the cells of each row, HTML.
    strong: the numbers of rows to stress.
    words: whether cells are of words, which may break, rather than of numbers.
  """
  head = ''.join(f'<th scope="col">{escape(column)}</th>' for column in columns)
  body = '\n'.join(
      f'<tr{" class=strong" if i in strong else ""}>' +
      ''.join(f'<td>{cell}</td>' for cell in row) + '</tr>'
      for i, row in enumerate(rows))
  kind = ' class="words"' if words else ''
  return (f'<div class="wide"><table{kind}>\n<thead><tr>{head}</tr></thead>\n'
          f'<tbody>\n{body}\n</tbody>\n</table></div>')


def figure(svg: str, caption: str = '') -> str:
  """Returns a figure with a caption, a text; '' without a picture."""
  if not svg:
    return ''
  below = f'<figcaption>{escape(caption)}</figcaption>' if caption else ''
  return f'<figure>{svg}{below}</figure>'


def row(figures: Iterable[str]) -> str:
  """Returns figures side by side, where there is room."""
  return f'<div class="row">{"".join(figures)}</div>'


def paragraph(text: str, *, note: bool = False) -> str:
  """Returns a text as a paragraph."""
  kind = ' class="note"' if note else ''
  return f'<p{kind}>{escape(text)}</p>'


def details(title: str, text: str) -> str:
  """Returns a long text that is folded away."""
  return (f'<details><summary>{escape(title)}</summary>'
          f'<pre>{escape(text)}</pre></details>')
