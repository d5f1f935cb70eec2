"""A process that makes batches; `workers` starts it.

It gets sources of batches, and then numbers of batches, and answers each with a
batch or an error. It ends when its input does: however the run ends, no worker
stays.
"""

import os
import pickle
import signal
import sys

from haikd.data import wire

# What the other side asks for.
OPEN, MAKE = 'open', 'make'


def main() -> None:
  """Answers until the input ends."""
  # A run that is told to stop still asks for batches, to end at a step.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  questions = os.fdopen(os.dup(0), 'rb', buffering=0)
  answers = os.fdopen(os.dup(1), 'wb', buffering=0)
  # What a library prints is no answer, and what it reads no question.
  os.dup2(2, 1)
  with open(os.devnull, 'rb') as nothing:
    os.dup2(nothing.fileno(), 0)
  sources = {}
  try:
    while True:
      kind, key, value = wire.receive(questions)
      try:
        if kind == OPEN:
          sources[key] = pickle.loads(value)
          answer = None
        else:
          answer = sources[key].make(value)
      except Exception as err:  # Whatever a user's code raises.
        answer = _portable(err)
      wire.send(answers, answer)
  except (EOFError, BrokenPipeError):
    # What is imported may wait for threads at the end.
    sys.stderr.flush()
    os._exit(0)


def _portable(err: Exception) -> Exception:
  """Returns an error that the other side can read."""
  try:
    pickle.loads(wire.importable(err))
    return err
  except Exception:  # What a user's error holds may raise any kind.
    return RuntimeError(f'{type(err).__name__}: {err}')
