"""What the commands beside `haikd.launch` share: how an error ends them."""

from collections.abc import Callable
import signal
import sys
import traceback

from haikd.core import checks
from haikd.run import console


def run(action: Callable[[], int], *, debug: bool,
        interrupted: str = 'interrupted.') -> int:
  """Runs a command; an error becomes one line on standard error.

  Args:
    action: the command; it returns an exit code.
    debug: whether to print the traceback of an error too.
    interrupted: what to say after Ctrl-C.

  Returns:
    The exit code of the action, or that of its error: its attribute
    `exit_code`, or 1; 130 after Ctrl-C; 141 if nobody reads standard output.
  """
  try:
    return action()
  except KeyboardInterrupt:
    print(f'haikd: {interrupted}', file=sys.stderr)
    return 130
  except (Exception, SystemExit) as err:  # Whatever it is, print one line.
    if console.nobody_reads(err):
      return 128 + signal.SIGPIPE
    if isinstance(err, SystemExit):
      raise
    if debug:
      traceback.print_exc()
    code = getattr(err, 'exit_code', None)
    print(f'haikd: {checks.one_line(err)}' if code else
          f'haikd: {checks.describe(err)}; run with --debug for the traceback',
          file=sys.stderr)
    return code or 1
