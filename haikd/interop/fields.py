"""The fields of another library's config, each of which must be accounted for.

A field that is not understood may change what the network computes, and
half-loaded weights give a teacher that is wrong and looks right. So a family
takes the fields it knows, one by one. Of the others those are skipped that are
known to change no output (`inert_fields`) or that the user names, and the rest
is refused by name.
"""

from collections.abc import Iterable, Mapping
import fnmatch
import numbers
import reprlib
from typing import Any, Optional

from haikd.core import checks
from haikd.interop import inert_fields
from haikd.storage import files
from haikd.storage import paths

# Sizes beyond these are mistakes, and would take more memory than there is.
MOST = 2**24
MOST_LAYERS = 10_000

_MISSING = object()

# {kind of a field: (what its value must be, whether a value is that)}
_KINDS = {
    int: ('a whole number above 0',
          lambda x: _is_above_0(x) and isinstance(x, numbers.Integral)),
    float: ('a number above 0', lambda x: _is_above_0(x)),
    bool: ('true or false', lambda x: isinstance(x, bool)),
    str: ('a string', lambda x: isinstance(x, str)),
    list: ('a list', lambda x: isinstance(x, list)),
    dict: ('an object', lambda x: isinstance(x, Mapping)),
}


class Ignore:
  """Unknown fields and unused tensors that the user takes for harmless.

  Attributes:
    field: the config field that names them, for messages.
    unmatched: the names that nothing had so far.

  Args:
    field: likewise.
    entries: names of fields, and globs over names of tensors.
  """

  def __init__(self, field: str = 'ignore', entries: Iterable[str] = ()):
    self.field = field
    self.unmatched = set(entries)
    self._entries = tuple(entries)

  def names(self, name: str) -> bool:
    """Returns whether an unknown field or unused tensor is among them."""
    matching = {entry for entry in self._entries
                if fnmatch.fnmatchcase(name, entry)}
    self.unmatched -= matching
    return bool(matching)

  def setting(self, names: Iterable[str]) -> str:
    """Returns how a config names further ones."""
    return f'{self.field}={(*self._entries, *names)}'

  def check_needed(self) -> None:
    """Refuses names that no unknown field and no unused tensor has.

    Raises:
      ConfigError: there is such a name.
    """
    if self.unmatched:
      raise checks.ConfigError(
          f'{self.field} must name fields of config.json that haikd does not '
          f'know, or tensors that it does not use; got '
          f'{sorted(self.unmatched)}, which are none. Remove them.')


class Fields:
  """A config whose every field must be taken, ignored or off.

  Attributes:
    path: the file that holds the config.

  Args:
    path: likewise, for messages.
    values: the fields.
    prefix: what precedes their names in the file, such as 'rope_scaling.'.
    ignore: unknown fields that are not refused.
  """

  def __init__(self, path: str, values: Mapping[str, Any], prefix: str = '', *,
               ignore: Optional[Ignore] = None):
    self.path = path
    self._values = dict(values)
    self._prefix = prefix
    self._ignore = ignore or Ignore()
    self._left = set(values) - inert_fields.NAMES

  def nested(self, values: Mapping[str, Any], prefix: str) -> 'Fields':
    """Returns the fields of an object in the same file.

    Args:
      values: the object.
      prefix: what precedes the names of its fields.
    """
    return Fields(self.path, values, prefix, ignore=self._ignore)

  def title(self, name: str) -> str:
    """Returns what messages call a field: its file and its full name."""
    return f'{self.path}: {self._prefix}{name}'

  def take(self, name: str, default: Any = _MISSING, *,
           kind: Optional[type] = None, null: bool = False,
           at_most: int = MOST) -> Any:
    """Returns the value of a field.

    Args:
      name: of the field.
      default: the value of a missing field. Without it the field is required.
      kind: int (a size, hence above 0), float (another number above 0), bool,
        str, list or dict; None for anything.
      null: whether a field of some kind may also be null, which it may in any
        case if null is the default.
      at_most: the largest legal int.

    Raises:
      DataError: the field is required and missing, or is of another kind.
    """
    self._left.discard(name)
    value = self._values.get(name, default)
    if value is _MISSING:
      raise checks.DataError(
          f'{self.title(name)} is missing; got the fields '
          f'{reprlib.repr(sorted(self._values))}. Fetch the model again.')
    if kind is None or value is None and (null or default is None):
      return value
    rule, is_legal = _KINDS[kind]
    if not is_legal(value):
      raise checks.DataError(
          f'{self.title(name)} must be {rule}; got {reprlib.repr(value)}. '
          'Fetch the model again.')
    if kind is int and value > at_most:
      raise checks.DataError(
          f'{self.title(name)} must be at most {at_most:,}; got '
          f'{reprlib.repr(value)}. Fetch the model again.')
    return value

  def expect(self, name: str, *values: Any) -> None:
    """Takes a field that must be missing, null or one of the values.

    Raises:
      DataError: it is something else, which is not supported.
    """
    self._left.discard(name)
    value = self._values.get(name)
    if value is not None and value not in values:
      raise checks.DataError(
          f'{self.title(name)} must be {" or ".join(map(repr, values))}; got '
          f'{reprlib.repr(value)}, which haikd does not support.')

  def ignore(self, names: Iterable[str]) -> None:
    """Skips fields that no output in inference mode depends on."""
    self._left -= set(names)

  def is_ignored(self, name: str) -> bool:
    """Returns whether the user takes a field for harmless."""
    return self._ignore.names(self._prefix + name)

  def ignoring(self, *names: str) -> str:
    """Returns how a config says that fields are harmless."""
    return self._ignore.setting(self._prefix + name for name in names)

  def done(self) -> None:
    """Raises DataError if a field is left that may switch something on."""
    # None, False, 0 and what is empty switch nothing on.
    unknown = {name: value for name in sorted(self._left)
               if not self.is_ignored(name) and (value := self._values[name])
               not in (None, False, 0, '', {}, [])}
    if unknown:
      named = ', '.join(
          f'{checks.shorten(self._prefix + name)!r}: {reprlib.repr(x)}'
          for name, x in unknown.items())
      raise checks.DataError(
          f'{self.path}: all fields must be known to haikd; got {{{named}}}. '
          'Nothing was loaded, since each may change what the network '
          'computes. If you know that it does not, set '
          f'{self.ignoring(*map(checks.shorten, unknown))}.')


def read_object(path: paths.Path) -> dict[str, Any]:
  """Returns the content of a JSON file that holds an object.

  Args:
    path: the file.

  Raises:
    DataError: it cannot be read, or holds something else.
  """
  content = files.read_json(path)
  if not isinstance(content, dict):
    raise checks.DataError(
        f'{path} must hold a JSON object; got {type(content).__name__}. Fetch '
        'the model again.')
  return content


def _is_above_0(value):
  return checks.is_number(value) and value > 0
