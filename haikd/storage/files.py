"""JSON files, on disk or in a bucket, that survive a kill at any moment."""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import json
import math
from typing import Any

import ml_collections
import numpy as np

from haikd.core import checks
from haikd.storage import paths
from haikd.storage import regular

Path = paths.Path

_GIT_LFS = b'version https://git-lfs'


def to_json(value: Any) -> Any:
  """Returns a value converted to the types of JSON.

  Tuples become lists, and arrays without axes become numbers. JSON has no NaN
  and no infinities: they become the strings 'NaN', 'Infinity' and '-Infinity',
  which `float` (and `Number` in a browser) turns back into numbers.

  Args:
    value: numbers, strings, None, and lists, tuples, mappings or ConfigDicts
      of them.

  Returns:
    Python numbers, strings, None, lists and dicts.

  Raises:
    TypeError: anything else.
  """
  if value is None or type(value) in (str, int, bool):  # Most are.
    return value
  if isinstance(value, ml_collections.ConfigDict):
    value = value.to_dict()
  if isinstance(value, Mapping):
    return {str(key): to_json(entry) for key, entry in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json(entry) for entry in value]
  if np.ndim(value) == 0 and hasattr(value, 'item'):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    if math.isnan(value):
      return 'NaN'
    return 'Infinity' if value > 0 else '-Infinity'
  if isinstance(value, (bool, int, float, str)):
    return value
  raise TypeError('value must be a number, a string, None, or a list or dict '
                  f'of them; got {value!r}.')


def encode(value: Any, **options) -> str:
  """Returns a value as strict JSON; `options` go to `json.dumps`."""
  return json.dumps(
      to_json(value), allow_nan=False, ensure_ascii=False, **options)


def replace(path: Path, text: str) -> None:
  """Writes a text atomically, as `paths.replace` writes bytes."""
  paths.replace(path, text.encode())


def write_json(path: Path, value: Any) -> None:
  """Writes a value as indented JSON, atomically."""
  replace(path, encode(value, indent=2) + '\n')


def read_json(path: Path) -> Any:
  """Reads a file of `write_json`.

  Args:
    path: an existing file.

  Returns:
    Python numbers, strings, None, lists and dicts.

  Raises:
    DataError: the file cannot be read or is not JSON.
  """
  content = b''
  try:
    content = paths.read(path)
    return json.loads(content)
  except checks.DataError:
    raise
  except (OSError, ValueError, RecursionError) as err:
    problem, remedy = checks.describe(err), 'Remove or restore the file'
    if content.startswith(_GIT_LFS):
      problem, remedy = 'a pointer of Git LFS', 'Run `git lfs pull`'
    if isinstance(err, RecursionError):
      problem = 'lists or objects that are nested too deeply'
    raise checks.DataError(
        f'{path} must hold JSON; got {problem}. {remedy}.') from err


@contextlib.contextmanager
def explaining_damage(path: Path, remedy: str) -> Iterator[None]:
  """Turns any error that a damaged file of haikd's causes into a DataError.

  Args:
    path: the file that is read inside.
    remedy: the message's last sentence, without the full stop.
  """
  try:
    yield
  except (checks.ConfigError, checks.DataError):
    raise
  except Exception as err:  # Wrong types and values cause errors of any kind.
    raise checks.DataError(
        f'{path} must be as it was written; got {checks.describe(err)}. '
        f'{remedy}.') from err


def read_rows(path: Path) -> list[dict[str, Any]]:
  """Reads a file with one JSON object a line.

  A last line that a kill has cut short is left out.

  Args:
    path: the file; a missing file has no rows.

  Returns:
    The rows in their order.

  Raises:
    DataError: a line that ends in a newline is not a JSON object, or the file
      cannot be read.
  """
  try:
    lines = paths.read(path).split(b'\n')
  except FileNotFoundError:
    return []
  except OSError as err:
    raise checks.DataError(
        f'{path} must be readable; got {checks.describe(err)}. Restore the '
        'file.') from err
  rows = []
  for number, line in enumerate(lines[:-1], start=1):
    try:
      row = json.loads(line)
      if not isinstance(row, dict):
        raise ValueError('not an object')
    except (ValueError, RecursionError) as err:
      raise checks.DataError(
          f'line {number} of {path} must be a JSON object; got {line[:60]!r} '
          f'({checks.one_line(err)}). Remove the line.') from err
    rows.append(row)
  return rows


def checksum(path: Path) -> str:
  """Returns the SHA-256 of a file, in hex; one in a bucket is fetched."""
  if paths.is_remote(path):
    return hashlib.sha256(paths.read(path)).hexdigest()
  regular.check(path)
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
