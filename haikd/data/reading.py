"""How the files of a data set are read: limits, and what errors lead to.

The fields are those of `config.data`. A data set's function gets them if it has
a parameter `reading`.
"""

from typing import NamedTuple

from haikd.core import checks

STOP, SKIP = 'stop', 'skip'
ON_ERROR = (STOP, SKIP)


class Reading(NamedTuple):
  """How files are read.

  Attributes:
    memory_mib: MiB that a split may take in memory once it is decoded, and that
      a piece of a file may take while it is read.
    on_error: what is done about an example that cannot be used: STOP or SKIP.
    max_skipped: how many of a split are skipped at most.
  """

  memory_mib: int = 4096
  on_error: str = STOP
  max_skipped: int = 100

  @property
  def memory_bytes(self) -> int:
    """The same as `memory_mib`, in bytes."""
    return self.memory_mib << 20

  @property
  def tolerated(self) -> int:
    """How many examples of a split may be unusable."""
    return self.max_skipped if self.on_error == SKIP else 0

  def check_memory(self, size: int, what: str) -> None:
    """Refuses what takes too much memory, before it is made.

    Args:
      size: bytes that it takes.
      what: what it is, with the name of its file.

    Raises:
      DataError: it takes more than `memory_mib`.
    """
    if size > self.memory_bytes:
      raise checks.DataError(
          f'{what} must take at most {self.memory_mib} MiB in memory; got '
          f'{-(-size >> 20)} MiB. Set config.data.memory_mib if this machine '
          'has as much, or split the file.')
