"""Large arrays in pages of 2 MiB: on a CPU, steps take up to a quarter less.

XLA asks malloc for a step's temporary memory anew in each step, and the kernel
hands it out in pages of 4 KiB unless it is asked for huge ones. glibc asks if a
variable says so when a process starts. The command line therefore starts itself
again with that variable, under the same process id, before JAX is imported.

CPU time of a step of `python -m haikd.bench`, with huge pages divided by
without, in turn on one core (glibc 2.36, two rounds of seven; peak memory is
the same within 1 %):

| case | ratio |
| --- | --- |
| logits | 0.89-0.91 |
| vision | 0.70-0.78 |
| records_48k | 0.85 |
| large_vocabulary | 0.91-1.00 |
| digits_vit, digits_mlp | 1.0 |
"""

from collections.abc import Mapping
import contextlib
import os
import pathlib
import re
import sys

from haikd.processes import command_line

_VARIABLE = 'GLIBC_TUNABLES'
_TUNABLE = 'glibc.malloc.hugetlb'
_MODE = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
_AGAIN = 'haikd_again'  # An option of Python's that marks the second start.
_SINCE = (2, 35)  # Of glibc; older ones do not have it.


def use() -> None:
  """Starts haikd's command line again with huge pages, where they help.

  Nothing happens in a process that is not haikd's own, that a debugger or a
  profiler watches, or whose caller has set `glibc.malloc.hugetlb`; nor where
  the kernel has no huge pages, or uses them unasked.
  """
  if _AGAIN in sys._xoptions or _is_watched() or not command_line.is_own():
    return
  tunables = with_huge_pages(os.environ)
  if tunables and sys.executable and are_available():
    command = [sys.executable, '-X', _AGAIN, *sys.orig_argv[1:]]
    with contextlib.suppress(OSError):  # Small pages do as well.
      os.execve(sys.executable, command, {**os.environ, _VARIABLE: tunables})


def _is_watched():
  """Returns whether a debugger or a profiler is at work."""
  if sys.gettrace() or sys.getprofile():
    return True
  monitoring = getattr(sys, 'monitoring', None)  # Since Python 3.12.
  return monitoring is not None and any(map(monitoring.get_tool, range(6)))


def with_huge_pages(environment: Mapping[str, str]) -> str:
  """Returns the tunables of a process that uses them; '' if they are set."""
  tunables = environment.get(_VARIABLE, '')
  if _TUNABLE in tunables:
    return ''
  return ':'.join(filter(None, (tunables, f'{_TUNABLE}=1')))


def are_available() -> bool:
  """Returns whether malloc and the kernel have huge pages if asked for them."""
  return _glibc() >= _SINCE and _is_asked()


def _glibc():
  """Returns its version; () for another C library."""
  try:
    version = os.confstr('CS_GNU_LIBC_VERSION') or ''
  except (AttributeError, OSError, ValueError):
    return ()
  return tuple(map(int, re.findall(r'\d+', version)[:2]))


def _is_asked():
  try:
    return '[madvise]' in _MODE.read_text()
  except OSError:
    return False
