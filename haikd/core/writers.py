"""The registry of writers of metrics, which `config.tracker` names."""

from collections.abc import Callable
from typing import NamedTuple, Optional

from haikd.core import registry


class WriterEntry(NamedTuple):
  """A registered writer of metrics.

  Attributes:
    function: see `register_writer`.
    package: the package that it needs; '' if none.
    module: the module that registered it.
  """

  function: Callable
  package: str
  module: str


writers: registry.Registry[WriterEntry] = registry.Registry('writer')


def register_writer(
    name: Optional[str] = None, *, package: str = '', replace: bool = False
) -> Callable[[registry.Function], registry.Function]:
  """Registers a function that opens a writer of metrics, for `config.tracker`.

  It is called as `(workdir, *, title, config, identity)` on the first process,
  for each network that is trained: with the network's folder, its title, the
  config in types of JSON, and a text that stays the same when the run resumes.
  It returns an object with `write(step, split, metrics)`, where metrics are
  finite floats by name, and `close()`. After a resume, rows may come again.

  Args:
    name: its name in configs; the function's name by default.
    package: a package that it needs; a run is refused where that is missing.
    replace: whether to replace a writer of that name.

  Returns:
    A decorator that returns the function unchanged.
  """

  def decorate(function):
    entry = WriterEntry(function, package, function.__module__)
    writers.add(name or function.__name__, entry, replace=replace)
    return function

  return decorate
