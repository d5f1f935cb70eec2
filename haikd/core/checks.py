"""Errors that a user can fix, and checks that cost nothing in the step.

Every message has the form

    <config field or argument> must <rule>; got <value>. <remedy>.

Shapes and dtypes are known while a function is traced, so array checks run once
per compilation.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import difflib
import math
import numbers

import jax
import jax.numpy as jnp

# Characters in a message.
_OF_NAME = 100
_OF_VALUE = 200
_OF_ERROR = 1000


class ConfigError(ValueError):
  """A config, flag or plugin cannot work; launch ends with exit code 2."""
  exit_code = 2


class DataError(ValueError):
  """Data, a checkpoint or a file cannot be used; exit code 3."""
  exit_code = 3


class DivergedError(ArithmeticError):
  """A loss in training is not finite; exit code 4."""
  exit_code = 4


class DoesNotFitError(MemoryError):
  """A step needs more memory than a chip has; exit code 5."""
  exit_code = 5


class LostProcessError(RuntimeError):
  """Another process of the run has failed, is dead or hangs; exit code 6."""
  exit_code = 6


class HangError(RuntimeError):
  """The run does not get on any more; exit code 7."""
  exit_code = 7


class StoppedError(RuntimeError):
  """SIGTERM has stopped the run, which is saved; exit code 75."""
  exit_code = 75  # EX_TEMPFAIL: try again. 143 is also that of a plain kill.


@contextlib.contextmanager
def errors_of(field: str) -> Iterator[None]:
  """Makes every ConfigError begin with the config field that it comes from."""
  try:
    yield
  except ConfigError as err:
    raise ConfigError(f'{field}: {err}') from err


def one_line(error: BaseException) -> str:
  """Returns an error's message on a single line.

  One that haikd did not write may quote all of a damaged file: it is cut.
  """
  # str() of a KeyError puts its message in quotes.
  is_quoted = isinstance(error, KeyError) and len(error.args) == 1
  message = str(error.args[0] if is_quoted else error)
  text = ' '.join(message.split()) or type(error).__name__
  return text if hasattr(error, 'exit_code') else shorten(text, _OF_ERROR)


def show(value: object) -> str:
  """Returns a value as messages show it: on one line, and not too long.

  A ConfigDict is shown as the dict it is.
  """
  plain = value.to_dict() if hasattr(value, 'to_dict') else value
  text = ' '.join(repr(plain).split())
  return shorten(text, _OF_VALUE)


def describe(error: BaseException) -> str:
  """Returns an error's type and message on one line, without a full stop."""
  return f'{type(error).__name__}: {one_line(error)}'.rstrip('.')


def suggest(name: str, known: Iterable[str]) -> str:
  """Returns a remedy for an unknown name: the closest one, and all known ones.

  Args:
    name: the unknown name.
    known: all legal names.

  Returns:
    One or two sentences, ending in a full stop.
  """
  names = sorted(map(str, known))
  closest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
  hint = f'Did you mean {shorten(closest[0])!r}? ' if closest else ''
  return f'{hint}Known: {abbreviate(names, limit=30) or "none"}.'


def abbreviate(items: Sequence[str], *, limit: int = 5) -> str:
  """Returns the first items, separated by commas, and how many more there are.

  Args:
    items: what a message lists.
    limit: how many of them it shows.
  """
  more = len(items) - limit
  shown = ', '.join(map(shorten, items[:limit]))
  return shown + (f' and {more} more' if more > 0 else '')


def shorten(name: str, length: int = _OF_NAME) -> str:
  """Returns a name, or its beginning if it is far too long for a message."""
  return name if len(name) <= length else f'{name[:length]}…'


def is_number(value: object) -> bool:
  """Returns whether a value is a finite number; True and False are not."""
  return (isinstance(value, numbers.Real) and not isinstance(value, bool) and
          math.isfinite(value))


def is_real(array: jax.typing.ArrayLike) -> bool:
  """Returns whether an array holds floating-point numbers."""
  return jnp.issubdtype(jnp.result_type(array), jnp.floating)


def are_scores(labels: jax.Array) -> bool:
  """Returns whether labels are scores, one number an example, not classes."""
  return len(labels.shape) == 1 and is_real(labels)


def check_mask(mask: jax.Array) -> None:
  """Raises TypeError unless `mask` is boolean."""
  dtype = jnp.result_type(mask)
  if dtype != jnp.bool_:
    raise TypeError('mask must be boolean, true where a position counts; got '
                    f'mask.dtype={dtype}. Compare it, as in `lengths > 0`.')


def check_leading(name: str, array: jax.Array, mask: jax.Array) -> None:
  """Raises ValueError unless `array.shape` begins with `mask.shape`."""
  shape, prefix = jnp.shape(array), jnp.shape(mask)
  if shape[:len(prefix)] != prefix:
    raise ValueError(f'mask must have the leading axes of {name}; got '
                     f'mask.shape={prefix}, {name}.shape={shape}. Drop the '
                     "mask's extra axes, or mask examples only.")


def check_same_shape(student: jax.Array, teacher: jax.Array, *,
                     any_width: bool = False) -> None:
  """Raises ValueError unless both arrays have the same shape.

  Args:
    student: any shape.
    teacher: any shape.
    any_width: whether the last axes may differ.
  """
  end = -1 if any_width else None
  if jnp.shape(student)[:end] != jnp.shape(teacher)[:end]:
    except_last = ', except for the last axis' if any_width else ''
    raise ValueError(
        f'student and teacher must have the same shape{except_last}; got '
        f'student.shape={jnp.shape(student)}, teacher.shape='
        f"{jnp.shape(teacher)}. Align them first: use align='pool' or, for "
        "features, 'project'.")
