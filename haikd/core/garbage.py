"""Delays Python's garbage collector where it would find little.

It looks for cycles of objects again whenever their number has grown by a
quarter. While haikd and JAX are imported and programs are traced, nearly all
that is made is kept: what the collector finds is worth less than the quarter of
the time of a start that its search takes. Short texts are prepared in a tenth
less time without it, since their records have no cycles.
"""

from collections.abc import Iterator
import contextlib
import gc

# Numbers of objects made inside by which a search for garbage is due: at any
# time, which one job does not reach, and at the end of a job.
_DUE, _DUE_AT_END = 1_000_000, 100_000
_made = 0


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
  """Lets no garbage be collected inside, but for what is freed without cycles.

  What was made inside is not searched at the end either, but once it is much,
  since the collector does not count it. Use it for what takes a bounded amount
  of memory.
  """
  global _made
  if not gc.isenabled():
    yield
    return
  gc.disable()
  before = gc.get_count()[0]
  try:
    yield
  finally:
    _made += max(gc.get_count()[0] - before, 0)
    is_frozen = gc.get_freeze_count() > 0  # By the caller.
    if not _collect_beyond(_DUE) and not is_frozen:
      gc.freeze()  # All that there is becomes old, without a search.
      gc.unfreeze()
    gc.enable()


def end_job() -> None:
  """Collects what a job has left, since another may follow; if that is much."""
  _collect_beyond(_DUE_AT_END)


def _collect_beyond(due):
  """Collects once more objects were made; returns whether it has."""
  global _made
  if _made <= due:
    return False
  gc.collect()
  _made = 0
  return True
