"""Calls of a user's functions, whose errors become one line."""

import contextlib

from haikd.core import checks


@contextlib.contextmanager
def calling(rule: str, remedy: str):
  """Turns an exception raised inside into a DataError, unless it is haikd's.

  The exception becomes the DataError's cause, which `--debug` shows.

  Args:
    rule: `<what the user gave> must <rule>`, the beginning of the message.
    remedy: `Fix <what>`, the end of the message.
  """
  try:
    yield
  except (checks.ConfigError, checks.DataError):
    raise
  # A user's code may raise anything, and call sys.exit.
  except (Exception, SystemExit) as err:
    raise checks.DataError(
        f'{rule}; got {checks.describe(err)}. {remedy}; --debug shows the '
        'traceback.') from err
