"""Names of splits and slices of them, as a config gives them."""

from collections.abc import Callable, Iterable
import re
from typing import Optional

from haikd.core import checks

_OFFER = " A part of one is a split too, such as 'train[90%:]'."


class UnknownSplitError(checks.DataError):
  """A split that a data set does not have.

  A data set's function does not know which config field names the split.
  `source.open_source` does, and raises the error again with that field.

  Attributes:
    split: the split that was asked for.
    known: the splits that the data set has.

  Args:
    split: the split that was asked for.
    known: the splits that the data set has.
    field: the config field or argument that holds `split`.
  """

  def __init__(self, split: str, known: Iterable[str], field: str = 'split'):
    self.split, self.known = split, tuple(known)
    super().__init__(f'{field} must name a split of the data set; got '
                     f'{split!r}. {checks.suggest(split, self.known)}{_OFFER}')


def check(split: str, known: Iterable[str]) -> None:
  """Raises UnknownSplitError unless `split` is one of `known`."""
  if split not in known:
    raise UnknownSplitError(split, known)


def parse(split: str,
          field: str) -> tuple[str, Optional[Callable[[int], range]]]:
  """Parses the name of a split, or of a slice of one.

  Args:
    split: such as 'train', 'train[:500]', 'train[80%:]' or 'test[-9:]'.
    field: the config field or argument that holds `split`, for messages.

  Returns:
    The name of the full split, and a function from its size to the indices in
    the slice; None instead of it if `split` is no slice.

  Raises:
    DataError: a slice that cannot be parsed.
  """
  name, bracket, rest = split.partition('[')
  if not bracket:
    return name, None
  match = re.fullmatch(r'(-?\d+%?)?:(-?\d+%?)?\]', rest)
  if not match:
    raise checks.DataError(
        f"{field} must be the name of a split or a slice such as 'train[:9]' or"
        f" 'train[80%:]'; got {split!r}.")
  start, stop = match.groups()
  return name, lambda size: range(size)[_bound(start, size):_bound(stop, size)]


def _bound(text, size):
  if text is None:
    return None
  if text.endswith('%'):
    return round(int(text[:-1]) / 100 * size)
  return int(text)
