"""Whether this process is haikd's own, and not one that uses its library."""

from collections.abc import Sequence
import os
import re
import sys
from typing import Optional


def is_own(command: Optional[Sequence[str]] = None) -> bool:
  """Returns whether a process was started as `haikd` or `python -m haikd`.

  Args:
    command: `sys.orig_argv` by default.
  """
  arguments = iter((sys.orig_argv if command is None else command)[1:])
  for argument in arguments:
    if argument.startswith('--'):  # It has a value, of its own or behind it.
      if '=' not in argument:
        next(arguments, None)
    elif not argument.startswith('-') or argument == '-':
      return os.path.basename(argument) == 'haikd'
    elif found := re.fullmatch(r'-[^mcWX]*([mcWX])(.*)', argument, re.DOTALL):
      letter, value = found.groups()
      value = value or next(arguments, '')
      if letter in 'mc':
        return letter == 'm' and value.split('.')[0] == 'haikd'
  return False
