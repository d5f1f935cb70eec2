"""Writes the tables of `config.md` from `haikd/config/`.

MkDocs calls `on_page_markdown`. The source is parsed and not imported: a
field's description is the comment above it.
"""

import ast
import pathlib
import re
from typing import Any, NamedTuple, Optional

SOURCES = tuple(
    pathlib.Path(__file__).parents[1] / 'haikd' / 'config' / name
    for name in ('fields.py', 'networks.py', 'entries.py', 'watching.py'))
MARK = '<!-- fields -->'

# Functions that make a part of a config used in several places.
SHARED = {
    'network': ('student and teacher', ('student', 'teacher')),
    'init_options': ('student.init_options and teacher.init_options',
                     ('student.init_options', 'teacher.init_options')),
    'optimizer': ('optimizer and teacher.train.optimizer',
                  ('optimizer', 'teacher.train.optimizer')),
    'view': ('teacher.view', ('teacher.view',)),
    'server': ('teacher.server', ('teacher.server',)),
    'guard': ('guard', ('guard',)),
    'report': ('report', ('report',)),
    'profile': ('profile', ('profile',)),
    'records': ('teacher.records', ('teacher.records',)),
    'term': ('losses.<term>', ('losses.<term>',)),
    'component': ('data.mixture.<name>', ('data.mixture.<name>',)),
}


class Field(NamedTuple):
  """One field.

  Attributes:
    name: below its section.
    default: as Python writes it.
    comment: what the source says above it.
  """

  name: str
  default: str
  comment: str


def read() -> str:
  """Returns the text of all sources."""
  return '\n'.join(path.read_text() for path in SOURCES)


def sections(source: str) -> dict[str, list[Field]]:
  """Returns the fields by section, in the order of the source.

  Args:
    source: the text that `read` returns.

  Returns:
    `{title: fields}`; the fields of the config itself have the title ''.
  """
  lines, found = source.splitlines(), {}
  functions = {node.name: node for node in ast.parse(source).body
               if isinstance(node, ast.FunctionDef)}
  for statement in functions['base'].body:
    if isinstance(statement, ast.Assign):
      target = ast.unparse(statement.targets[0])
      _add(found, target.partition('.')[2], statement.value, lines)
  for name, (title, _) in SHARED.items():
    returned = next(node for node in functions[name].body
                    if isinstance(node, ast.Return))
    _add(found, title, returned.value, lines)
  return found


def markdown(source: str) -> str:
  """Returns a table for each section."""
  text = []
  for title, fields in sections(source).items():
    if title:
      text += ['', f'## `{title}`', '']
    text += ['| field | default | meaning |', '| --- | --- | --- |']
    for field in fields:
      comment = field.comment.replace('|', '\\|')
      text.append(f'| `{field.name}` | `{field.default}` | {comment} |')
  return '\n'.join(text)


def on_page_markdown(text: str, page: Any, **_: Any) -> Optional[str]:
  """Puts the tables where the page has its mark."""
  if MARK not in text:
    return None
  return text.replace(MARK, markdown(read()))


def _add(found, title, value, lines):
  for call in ast.walk(value):
    if isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'dict':
      fields = [_field(keyword, lines) for keyword in call.keywords
                if keyword.arg and not _is_shared(keyword.value)]
      if fields:
        found.setdefault(title, []).extend(fields)
      return


def _field(keyword, lines):
  comment, above = [], keyword.lineno - 2
  while lines[above].lstrip().startswith('#'):
    comment.insert(0, lines[above].lstrip().lstrip('#').strip())
    above -= 1
  return Field(keyword.arg, _default(keyword.value), ' '.join(comment))


def _is_shared(value):
  return isinstance(value, ast.Call) and (
      ast.unparse(value.func).rpartition('.')[2] in SHARED)


def _default(value):
  """Returns a default as a reader writes it, without its wrapper."""
  text = ast.unparse(value)
  if re.match(r'config_dict\.placeholder|(networks\.)?free\(\)', text):
    return 'None'
  for wrapper in (r'(?:networks\.)?free\((.*)\)',
                  r'config_dict\.FieldReference\((.*), field_type=.*\)',
                  r"fields\.pop\('\w+', (.*)\)"):
    if match := re.fullmatch(wrapper, text):
      text = match[1]
  return text
