"""Reads batches ahead of the step, by threads or by workers.

Images are decoded by workers where there are cores and memory for them. Where
haikd itself has chosen so, threads do instead what workers cannot.
"""

from typing import Any, Optional

from haikd.core import checks
from haikd.core import cores
from haikd.core import memory
from haikd.core import notes
from haikd.data import mixture as mixture_lib
from haikd.data import workers as workers_lib
from haikd.data.image import views as views_lib
from haikd.data.image import window

_PREFETCH = 4  # Batches, where threads make them.
_THREADS = 4  # Where a split is not in memory.
_FEW = 4  # Cores: threads suffice on fewer, since decoding releases their lock.
_MOST = 8  # Workers that haikd starts of itself; each takes 150 MB.
_SHARE = 1 / 4  # Of memory, for the batches of workers that it starts.


class Ahead:
  """Who makes the batches of one data set, and how many ahead.

  It holds the workers, so that they serve all splits as long as there is data.

  Args:
    prefetch: `config.data.prefetch`.
    workers: `config.data.workers`.
    views: how the networks see images.
    batch_size: examples of the largest batch of this process.
  """

  def __init__(self, prefetch: Optional[int], workers: Optional[int], *,
               views: views_lib.Views, batch_size: int):
    self._prefetch, self._wanted = prefetch, workers
    self._views = views
    self._batch_size = batch_size
    self._workers: Optional[workers_lib.Workers] = None
    self._made: dict[Optional[str], workers_lib.Made] = {}
    self._is_refused = False  # By data that workers cannot make.

  def stream(self, name: Optional[str], numbered: Any,
             reader: mixture_lib.AnyReader) -> Any:
    """Returns what iterates over batches in their order, reading ahead.

    Args:
      name: of the stream; one of that name always has the same batches.
      numbered: the batches by number.
      reader: of their split.

    Raises:
      ConfigError: `config.data.workers` asks for workers, which cannot.
    """
    import grain  # Takes a second: too long for `import haikd`.
    threads = 1 if reader.cached else _THREADS
    prefetch = self._prefetch or _PREFETCH
    if made := self.made(name, numbered, reader):
      numbered, threads = made, made.count
      # One batch more than workers, so that none waits for the step.
      prefetch = self._prefetch or max(_PREFETCH, threads + 1)
    options = grain.ReadOptions(num_threads=min(threads, prefetch),
                                prefetch_buffer_size=prefetch)
    return grain.MapDataset.source(numbered).to_iter_dataset(options)

  def made(self, name: Optional[str], numbered: Any,
           reader: mixture_lib.AnyReader) -> Optional[workers_lib.Made]:
    """Returns the batches as workers make them; None where threads do.

    Args:
      name: as for `stream`, and so are the others.
      numbered: likewise.
      reader: likewise.

    Raises:
      ConfigError: as `stream`.
    """
    if reader.cached:
      return None
    is_encoded = getattr(reader, 'is_encoded', False)  # A mixture has none.
    if is_encoded and self._views.cut is not None:
      window.say_how()
    if self._is_refused or self._wanted is None and not is_encoded:
      return None
    if name not in self._made:
      count = self._count(reader)
      if not count:
        return None
      try:
        self._workers = self._workers or workers_lib.shared(count)
        self._made[name] = workers_lib.Made(numbered, self._workers)
      except workers_lib.UnfitError as err:
        self._refuse(err)
        return None
      if self._wanted is None:
        notes.say(f'{count} of {cores.of_process()} cores decode images, each '
                  'in a process of its own (config.data.workers).')
    return self._made[name]

  def _count(self, reader):
    """Returns how many workers there are, or are to be; 0 for threads."""
    if self._workers is not None:
      return self._workers.count
    count = self._wanted
    if count is None:
      usable = cores.of_process()
      count = min(usable // 2, _MOST) if usable >= _FEW else 0
      if count and (total := memory.of_host()):
        size = self._batch_size * (
            self._views.example_bytes or _bytes_of(reader))
        # As many are being made, and one more waits.
        count = min(count, max(int(_SHARE * total / size - 1) // 2, 0))
    return min(count, self._prefetch or count)  # Others would have no work.

  def _refuse(self, err):
    """Goes on with threads, if that is not against the config."""
    if self._wanted is not None:
      raise checks.ConfigError(
          'config.data.workers must be 0 for data whose batches no other '
          f'process can make; got {self._wanted}, and {err}') from err
    self._is_refused, self._workers = True, None
    self._made.clear()
    notes.say('Threads decode images rather than processes of their own, since '
              f'{err.reason} (config.data.workers).')


def _bytes_of(reader):
  """Returns what the first example takes, in float32."""
  return sum(4 * value.size for value in reader.gather([0]).values())
