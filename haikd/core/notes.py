"""Tells the user what was decided for them.

What a config leaves open is decided by haikd, and what it decides is said in a
line. The lines are log messages of level INFO of the logger `haikd`; the
command line prints each once, a library's caller sees them as they set up
`logging`.
"""

from collections.abc import Iterator
import contextlib
import logging
import sys

_LOGGER = logging.getLogger('haikd')


def say(message: str) -> None:
  """Says what was decided.

  Args:
    message: one or two sentences: what was decided, and the config field that
      decides otherwise.
  """
  _LOGGER.info('%s', message)


@contextlib.contextmanager
def printed(wanted: bool = True) -> Iterator[None]:
  """Prints what is said inside on standard error, each message once.

  Args:
    wanted: False prints nothing, for all processes of a run but the first.
  """
  if not wanted:
    yield
    return
  handler, level = _Printer(), _LOGGER.level
  _LOGGER.addHandler(handler)
  _LOGGER.setLevel(logging.INFO)
  _LOGGER.propagate = False  # Some libraries add a handler to the root logger.
  try:
    yield
  finally:
    _LOGGER.removeHandler(handler)
    _LOGGER.setLevel(level)
    _LOGGER.propagate = True


class _Printer(logging.Handler):
  """Prints each message once."""

  def __init__(self):
    super().__init__(logging.INFO)
    self._printed: set[str] = set()

  def emit(self, record: logging.LogRecord) -> None:
    """Prints a message that was not printed before."""
    message = record.getMessage()
    if message not in self._printed:
      self._printed.add(message)
      print(f'haikd: {message}', file=sys.stderr, flush=True)
