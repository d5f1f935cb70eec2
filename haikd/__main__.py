"""`python -m haikd` and `haikd` are `python -m haikd.launch`."""

from typing import NoReturn

from haikd import launch
from haikd.processes import leaving


def run() -> NoReturn:
  """Runs the command line, and ends the process with its exit code."""
  leaving.leave(launch.main())


if __name__ == '__main__':
  run()
