"""Registries: losses, models, data sets and aligners by name.

A registration is one decorator on a plain function.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import inspect
from typing import Generic, Optional, Protocol, TypeVar, Union

from haikd.core import checks
from haikd.core import entries


class _Registered(Protocol):

  @property
  def module(self) -> str:
    """The module that registered the entry."""


Entry = TypeVar('Entry', bound=_Registered)
Function = TypeVar('Function', bound=Callable)


class Registry(Generic[Entry]):
  """Entries of one kind, by name."""

  def __init__(self, kind: str):
    self.kind = kind
    self._entries: dict[str, Entry] = {}

  def add(self, name: str, entry: Entry, *, replace: bool = False) -> None:
    """Adds an entry.

    Args:
      name: its name in configs; a plugin from outside haikd is `vendor/name`.
      entry: the entry to add.
      replace: whether to replace an entry of that name.

    Raises:
      ConfigError: the name is taken and `replace` is false.
    """
    if name in self._entries and not replace:
      raise checks.ConfigError(
          f'name of a {self.kind} must be new; got {name!r} from '
          f'{entry.module}, but {self._entries[name].module} has registered '
          f"that name. Choose another one, such as 'vendor/{name}', or pass "
          'replace=True.')
    self._entries[name] = entry

  def __getitem__(self, name: str) -> Entry:
    return self.find(name, self.kind)

  def find(self, name: str, field: str) -> Entry:
    """Returns the entry of a name that a config field gives.

    Args:
      name: a registered name.
      field: the config field, for messages.

    Raises:
      ConfigError: the name is not registered; the closest is named.
    """
    if name not in self._entries:
      raise checks.ConfigError(
          f'{field} must name a registered {self.kind}; got {name!r}. '
          f'{checks.suggest(name, self._entries)} If a plugin registers it, '
          'name that module in config.plugins.')
    return self._entries[name]

  def names(self) -> tuple[str, ...]:
    """Returns the registered names in alphabetical order."""
    return tuple(sorted(self._entries))

  @contextlib.contextmanager
  def holding(self, name: str, entry: Entry) -> Iterator[None]:
    """Has an entry under a name inside the context.

    Args:
      name: a name that is not taken.
      entry: the entry.

    Raises:
      ConfigError: the name is taken.
    """
    self.add(name, entry)
    try:
      yield
    finally:
      del self._entries[name]

  @contextlib.contextmanager
  def temporary(self) -> Iterator[None]:
    """Undoes, on leaving the context, every registration made inside it."""
    before = dict(self._entries)
    try:
      yield
    finally:
      self._entries = before


losses: Registry[entries.LossEntry] = Registry('loss')
metrics: Registry[entries.MetricEntry] = Registry('metric')
models: Registry[entries.ModelEntry] = Registry('model')
datasets: Registry[entries.DatasetEntry] = Registry('dataset')
aligners: Registry[entries.AlignerEntry] = Registry('aligner')


def register_model(name: Optional[str] = None,
                   *,
                   taps: Optional[dict[str, str]] = None,
                   tensor: Optional[dict[str, int]] = None,
                   block_options: Iterable[str] = (),
                   task: Union[None, str, Callable] = None,
                   replace: bool = False) -> Callable[[Function], Function]:
  """Registers a Haiku function as a model.

  Args:
    name: its name in configs; the function's name by default.
    taps: `{kind: glob over module names}`, the modules to capture when the
      config names none, for example `dict(features='block_*')`.
    tensor: `{glob over parameters: axis}`, which axis of a parameter to split
      over the mesh axis `tensor`. A glob matches from the right, between
      slashes: `{'mlp/up/w': -1}` is for every parameter whose path ends in
      `mlp/up/w`. Axes count from the end, so that they are also right for
      stacked layers.
    block_options: the options that are None or hold numbers of blocks, from 0.
      A network that takes some blocks of pretrained weights has those of its
      blocks in them.
    task: what it predicts: 'causal_lm', 'masked_lm', 'classification',
      'embedding' or a name of yours; or a function that returns that, and
      takes those of its options that matter, with their defaults. Data whose
      targets are for other tasks is then refused. None if any may fit.
    replace: whether to replace a model of that name.

  Returns:
    A decorator that returns the function unchanged. It raises ConfigError for a
    class, or if the name is taken.
  """

  def decorate(function):
    if inspect.isclass(function):
      raise checks.ConfigError(
          'a model must be a function (inputs, *, is_training, **options); got '
          f'the class {function.__name__} of {function.__module__}. Register a '
          f'function that returns {function.__name__}(…)(inputs).')
    entry = entries.ModelEntry(
        function, dict(taps or {}), dict(tensor or {}), tuple(block_options),
        task, function.__module__)
    models.add(name or function.__name__, entry, replace=replace)
    return function

  return decorate


def register_dataset(name: Optional[str] = None,
                     *,
                     spec: Optional[Callable] = None,
                     tasks: Union[None, tuple[str, ...], Callable] = None,
                     replace: bool = False) -> Callable[[Function], Function]:
  """Registers a function that builds a data set.

  Args:
    name: its name in configs; the function's name by default.
    spec: a function that takes the options of the data set and returns
      `haikd.data.Spec`: the shapes and dtypes of an example, without reading
      one, so that a run can be planned on a machine without the data.
    tasks: the tasks that its targets fit, named as for `register_model`; or a
      function that returns them, likewise. None if they may fit any.
    replace: whether to replace a data set of that name.

  Returns:
    A decorator that returns the function unchanged.
  """

  def decorate(function):
    entry = entries.DatasetEntry(function, spec, tasks, function.__module__)
    datasets.add(name or function.__name__, entry, replace=replace)
    return function

  return decorate


def register_aligner(name: Optional[str] = None,
                     *,
                     lazy: bool = False,
                     keeps_logits: bool = False,
                     calibrate: Optional[Callable] = None,
                     all_layers: bool = False,
                     replace: bool = False) -> Callable[[Function], Function]:
  """Registers a Haiku function that brings a layer's pair to one shape.

  Args:
    name: its name in configs; the function's name by default.
    lazy: whether it takes lazy maps (`haikd.QueryKey`); otherwise it gets them
      as arrays.
    keeps_logits: whether it returns logits and their mask as they came. If it
      is lazy as well, terms on logits that use it share chunks of logits with
      the others.
    calibrate: `f(**options)` returns None, or `g(params, teacher)`, which
      returns the parameters of one layer, NumPy, before the first step;
      `teacher` is `[n, E]`, states of the teacher's layer on a sample of the
      training split.
    all_layers: whether it gets all layers of a term at once: tuples of the
      student's and of the teacher's values and of masks, from the student's
      first layer to its last. It then returns a tuple of pairs.
    replace: whether to replace an aligner of that name.

  Returns:
    A decorator that returns the function unchanged.
  """

  def decorate(function):
    entry = entries.AlignerEntry(
        function, lazy, keeps_logits, calibrate, all_layers,
        function.__module__)
    aligners.add(name or function.__name__, entry, replace=replace)
    return function

  return decorate
