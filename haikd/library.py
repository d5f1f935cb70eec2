"""haikd as a library: what the command line does, as functions.

They use no flags and end no process. What is decided for the caller is logged,
level INFO of the logger `haikd`; whatever cannot be right raises
`haikd.core.checks.ConfigError` (a ValueError) or `DataError`, with the message
that the command line prints.
"""

from collections.abc import Iterator
import contextlib
from typing import Any

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import entries
from haikd.core import plugins
from haikd.core import registry
from haikd.data import sequences
from haikd.processes import watchdog
from haikd.run import job
from haikd.run import results as results_lib
from haikd.run import trained as trained_lib
from haikd.storage import paths

# What `data=` is called in the config of a run.
_GIVEN = 'given'


def train(config: config_lib.ConfigDict, workdir: paths.Path,
          data: Any = None) -> results_lib.Results:
  """Trains and evaluates as `python -m haikd.launch` does.

  A run that is found in the workdir goes on, also one of the command line.

  Args:
    config: a config made from `haikd.config.base()`; it is not changed.
    workdir: a folder, or gs://bucket/…, that holds everything of this run.
    data: a data set, such as `haikd.data.from_arrays(…)`: a function of the
      name of a split, a dict `{split: Source}`, or a Source, which is the split
      'train' and is cut, as 'train[90%:]'. A `grain.MapDataset` is a Source.
      None for the data set that `config.data.name` names.

  Returns:
    For each network, 'teacher', 'student_start', 'student_alone' and 'student',
    as far as there is one, its number of `parameters`, its metrics on the split
    `config.evaluation.final`, and the `seconds` of training.

  Raises:
    ConfigError: the config cannot work; raised before anything is trained.
    DataError: data, a checkpoint or a file cannot be used.
    DivergedError: a loss is not finite.
    StoppedError: SIGTERM has come, and training was saved.
  """
  with _prepared(config, data) as prepared:
    return job.train(prepared, workdir)


def evaluate(config: config_lib.ConfigDict, workdir: paths.Path,
             data: Any = None) -> results_lib.Results:
  """Evaluates what a run has trained so far, without training.

  Args:
    config: the config of the run; `config.evaluation.final` is the split.
    workdir: the workdir of the run.
    data: as for `train`.

  Returns:
    As `train`; networks without a checkpoint are left out.

  Raises:
    ConfigError: the config cannot work.
    DataError: the run has no checkpoint of its teacher, or files cannot be
      used.
  """
  with _prepared(config, data) as prepared:
    return job.evaluate(prepared, workdir)


def load(workdir: paths.Path,
         which: str = 'student') -> trained_lib.TrainedNetwork:
  """Reads a network that a run has trained; its data is not needed.

  Args:
    workdir: the workdir of the run.
    which: 'student', 'student_alone' or 'teacher'.

  Returns:
    The network, with `params`, `state`, `config`, `apply` and `features`.

  Raises:
    ConfigError: `which` is none of these.
    DataError: the run has no checkpoint of that network.
  """
  return trained_lib.load(workdir, which)


@contextlib.contextmanager
def _prepared(config: config_lib.ConfigDict, data: Any
              ) -> Iterator[config_lib.ConfigDict]:
  """Yields a checked copy of a config; data given is registered meanwhile."""
  config = config.copy_and_resolve_references()
  with contextlib.ExitStack() as stack:
    if data is not None:
      if config.data.mixture or _GIVEN in registry.datasets.names():
        raise checks.ConfigError(
            'data must be None with config.data.mixture, and in a second run '
            'beside one that has data; got both. Register the data sets under '
            'names of their own with haikd.register_dataset.')
      stack.enter_context(registry.datasets.holding(
          _GIVEN, entries.DatasetEntry(
              sequences.by_split(data), None, None, __name__)))
      config.data.name = _GIVEN
    config_lib.validate(config)
    plugins.load(config.plugins)
    stack.enter_context(watchdog.watched(config.guard.hang_after))
    yield config
