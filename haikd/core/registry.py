"""What is known by name: losses, models, data sets and aligners.

A registration is one decorator on a plain function. Plugins are modules that
register something when they are imported: the config names them, or an
installed package announces itself under the entry-point group `haikd.plugins`.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import importlib
import importlib.metadata
import inspect
from typing import Any, Generic, NamedTuple, Optional, TypeVar

from haikd.core import checks

T = TypeVar('T')

PLUGIN_GROUP = 'haikd.plugins'


class LossEntry(NamedTuple):
  """A registered loss.

  Attributes:
    function: the loss, guarded (see `haikd.register_loss`).
    on: what it eats: 'logits', 'features', 'attention' or any tap's name.
    example: `{argument: shape}` for the contract test, or None.
    relational: whether it relates examples to one another, so that it has to
      see the batch of all devices at once.
    any_width: whether student and teacher may differ in their last axis.
    additive: whether it is a sum over positions, to be had piece by piece.
    module: the module that registered it.
  """

  function: Callable
  on: str
  example: Optional[dict[str, tuple[int, ...]]]
  relational: bool
  any_width: bool
  additive: bool
  module: str

  @property
  def needs_teacher(self) -> bool:
    """Whether it compares with a teacher: no default stands in for one."""
    teacher = inspect.signature(self.function).parameters['teacher']
    return teacher.default is inspect.Parameter.empty


class ModelEntry(NamedTuple):
  """A registered model.

  Attributes:
    function: a Haiku function `(inputs, *, is_training, **options) -> logits`.
    taps: `{kind: glob}` of what to capture unless the config says otherwise.
    tensor: `{glob over parameters: axis}` of what to split over the mesh axis
      `tensor` unless the config says otherwise.
    module: the module that registered it.
  """

  function: Callable
  taps: dict[str, str]
  tensor: dict[str, int]
  module: str


class DatasetEntry(NamedTuple):
  """A registered data set.

  Attributes:
    function: `(split, **options) -> Source`; see `haikd.data.Source`.
    spec: `(**options) -> Spec`, what an example is like, or None.
    module: the module that registered it.
  """

  function: Callable
  spec: Optional[Callable]
  module: str


class AlignerEntry(NamedTuple):
  """A registered aligner.

  Attributes:
    function: a Haiku function; see `haikd.core.base.Aligner`.
    lazy: whether it takes lazy logits and maps.
    keeps_logits: whether it returns logits as they came.
    module: the module that registered it.
  """

  function: Callable
  lazy: bool
  keeps_logits: bool
  module: str


class Registry(Generic[T]):
  """Entries of one kind, by name."""

  def __init__(self, kind: str):
    self.kind = kind
    self._entries: dict[str, T] = {}

  def add(self, name: str, entry: Any, *, replace: bool = False) -> None:
    """Adds an entry.

    Args:
      name: what a config calls it; somebody else's plugin is `vendor/name`.
      entry: has a field `module`.
      replace: whether to take the place of an entry of that name.

    Raises:
      ConfigError: the name is taken and `replace` is false.
    """
    if name in self._entries and not replace:
      raise checks.ConfigError(
          f'registry.register_{self.kind}: name must be new; got {name!r} from '
          f'{entry.module}, already registered by '
          f'{self._entries[name].module}. Choose another name, such as '
          f"'vendor/{name}', or pass replace=True.")
    self._entries[name] = entry

  def __getitem__(self, name: str) -> T:
    if name not in self._entries:
      raise checks.ConfigError(
          f'registry.get_{self.kind}: name must be a registered {self.kind}; '
          f'got {name!r}. {checks.suggest(name, self._entries)} A plugin that '
          'brings it belongs in config.plugins.')
    return self._entries[name]

  def names(self) -> tuple[str, ...]:
    """Returns the registered names in alphabetical order."""
    return tuple(sorted(self._entries))

  @contextlib.contextmanager
  def temporary(self) -> Iterator[None]:
    """Forgets, on leaving the context, what was registered inside it."""
    before = dict(self._entries)
    try:
      yield
    finally:
      self._entries = before


losses: Registry[LossEntry] = Registry('loss')
models: Registry[ModelEntry] = Registry('model')
datasets: Registry[DatasetEntry] = Registry('dataset')
aligners: Registry[AlignerEntry] = Registry('aligner')


def register_model(name: Optional[str] = None,
                   *,
                   taps: Optional[dict[str, str]] = None,
                   tensor: Optional[dict[str, int]] = None,
                   replace: bool = False) -> Callable[[T], T]:
  """Registers a Haiku function as a model.

  Args:
    name: what configs call it; the function's own name by default.
    taps: `{kind: glob over module names}` to capture when a config does not
      say, for example `dict(features='block_*')`.
    tensor: `{glob over parameters: axis}`, which axis of a parameter to split
      over the mesh axis `tensor`, for example `{'mlp/up/w': -1}`. Parts of the
      glob are matched against the last parts of `<module>/<parameter>`; axes
      count from the end, so that they hold for stacked layers too.
    replace: whether it may take the place of another of that name.

  Returns:
    A decorator that returns the function unchanged.
  """

  def decorate(function):
    entry = ModelEntry(function, dict(taps or {}), dict(tensor or {}),
                       function.__module__)
    models.add(name or function.__name__, entry, replace=replace)
    return function

  return decorate


def register_dataset(name: Optional[str] = None,
                     *,
                     spec: Optional[Callable] = None,
                     replace: bool = False) -> Callable[[T], T]:
  """Registers a function that builds a data set.

  Args:
    name: what configs call it; the function's own name by default.
    spec: a function that takes the options of the data set and returns
      `haikd.data.Spec`: what an example is like, said without reading one, so
      that a run can be planned where the data is not.
    replace: whether it may take the place of another of that name.

  Returns:
    A decorator that returns the function unchanged.
  """

  def decorate(function):
    entry = DatasetEntry(function, spec, function.__module__)
    datasets.add(name or function.__name__, entry, replace=replace)
    return function

  return decorate


def register_aligner(name: Optional[str] = None,
                     *,
                     lazy: bool = False,
                     keeps_logits: bool = False,
                     replace: bool = False) -> Callable[[T], T]:
  """Registers a Haiku function that brings a layer's pair to one shape.

  Args:
    name: what configs call it; the function's own name by default.
    lazy: whether it takes lazy maps as they are; to any other they come as
      arrays.
    keeps_logits: whether it returns logits as they came. If it is lazy as well,
      terms on logits that use it share chunks of logits with the others.
    replace: whether it may take the place of another of that name.

  Returns:
    A decorator that returns the function unchanged.
  """

  def decorate(function):
    entry = AlignerEntry(function, lazy, keeps_logits, function.__module__)
    aligners.add(name or function.__name__, entry, replace=replace)
    return function

  return decorate


def load_plugins(modules: Iterable[str] = ()) -> None:
  """Imports the modules a config names and those that packages announce.

  Args:
    modules: dotted names, `config.plugins`.

  Raises:
    ConfigError: a module that cannot be imported, whatever it raises.
  """
  for module in modules:
    _import(
        module, 'config.plugins must name modules that can be imported',
        'Install its package, or put it beside the config file.')
  for point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
    package = point.dist.name if point.dist else point.name
    _import(
        point.value.partition(':')[0],
        f'the installed package {package!r}, which announces a plugin, must be '
        'importable', f'Mend it, or run `pip uninstall {package}`.')


def _import(module, rule, remedy):
  try:
    importlib.import_module(module)
  except Exception as err:  # A plugin is anybody's code.
    missing = isinstance(err, ModuleNotFoundError) and (
        f'{module}.'.startswith(f'{err.name}.'))
    if not missing:
      remedy = 'Mend that module; --debug shows the traceback.'
    reason = f'{type(err).__name__}: {checks.one_line(err)}'.rstrip('.')
    raise checks.ConfigError(
        f'registry.load_plugins: {rule}; got {module!r} ({reason}). {remedy}'
    ) from err
