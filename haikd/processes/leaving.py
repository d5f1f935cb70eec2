"""How a command ends while a thread of it compiles or waits for a server.

Python waits for threads at its end. Nothing interrupts a compilation, which may
take minutes: more than Slurm or a cluster leaves after SIGTERM.
"""

import logging
import multiprocessing
import os
import sys
import threading
from typing import NoReturn

# What the names of threads begin with whose work nobody needs at the end.
EXPENDABLE = 'expendable'


def leave(code: int) -> NoReturn:
  """Ends the process with an exit code, without waiting for expendable threads.

  Call it last: what is open must be closed, and what was saved complete. Where
  no such thread runs, this is `sys.exit`. Otherwise functions of `atexit` are
  left out, since JAX's would free what a compilation uses.

  Args:
    code: the exit code.
  """
  others = [thread for thread in threading.enumerate() if not (
      thread is threading.current_thread() or thread.daemon)]
  if not others or not all(
      thread.name.startswith(EXPENDABLE) for thread in others):
    sys.exit(code)
  for child in multiprocessing.active_children():  # That read data.
    child.terminate()
  logging.shutdown()
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):  # Nobody reads it, or it is closed.
      pass
  os._exit(code)
