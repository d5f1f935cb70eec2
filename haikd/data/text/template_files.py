"""The chat templates that a tokenizer has in files of their own."""

from collections.abc import Mapping
from typing import Any

from haikd.core import checks
from haikd.storage import files
from haikd.storage import paths

DEFAULT = 'default'

_FILE = 'chat_template.jinja'
_OLD_FILE = 'chat_template.json'  # What processors of transformers wrote.
_MORE = 'additional_chat_templates'  # A folder of <name>.jinja.
_JINJA = '.jinja'
_FIELD = 'chat_template'  # In the old file, and in tokenizer_config.json.


def read(folder: paths.ConcretePath,
         config: Mapping[str, Any]) -> dict[str, str]:
  """Returns `{name: template}`.

  Args:
    folder: of the tokenizer.
    config: the content of its `tokenizer_config.json`.

  Raises:
    DataError: a file that cannot be read, or is no text.
  """
  more = folder / _MORE
  found = {name.removesuffix(_JINJA): more / name
           for name in sorted(paths.names(more)) if name.endswith(_JINJA)}
  if paths.exists(folder / _FILE):
    found[DEFAULT] = folder / _FILE
  if found or _FIELD in config or not paths.exists(folder / _OLD_FILE):
    return {name: _read(path) for name, path in found.items()}
  content = files.read_json(folder / _OLD_FILE)
  template = content.get(_FIELD) if isinstance(content, dict) else content
  if template is None:
    return {}
  if not isinstance(template, str):
    raise checks.DataError(
        f'{str(folder / _OLD_FILE)!r} must have a text as its {_FIELD}; got '
        f'{type(template).__name__}. Restore the file.')
  return {DEFAULT: template}


def write(folder: paths.ConcretePath, templates: Mapping[str, str]) -> None:
  """Writes templates where `read` finds them.

  Args:
    folder: of the tokenizer.
    templates: by name.

  Raises:
    OSError: a file cannot be written.
  """
  for name, template in templates.items():
    path = folder / _FILE
    if name != DEFAULT:
      path = folder / _MORE / f'{name}{_JINJA}'
      paths.make_folder(path.parent)
    files.replace(path, template)


def _read(path):
  try:
    return paths.read(path).decode()
  except (OSError, UnicodeDecodeError) as err:
    raise checks.DataError(
        f'{str(path)!r} must be UTF-8; got {checks.one_line(err)}. Restore the '
        'file.') from err
