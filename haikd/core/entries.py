"""What a registry holds of each plugin: its function, and what it promises."""

from collections.abc import Callable
import inspect
from typing import Any, NamedTuple, Optional, Union


class LossEntry(NamedTuple):
  """A registered loss.

  Attributes:
    function: the loss, guarded (see `haikd.register_loss`).
    on: what it compares: 'logits', 'features', 'attention' or any tap's name;
      or a tuple of taps.
    example: `{argument: shape}` for the contract test, or None.
    relational: whether it relates examples to one another, so that it needs the
      batch of all devices at once.
    any_width: whether student and teacher may differ in their last axis.
    additive: whether it is a sum over positions, so that it can be computed in
      chunks.
    scores: whether it takes scores of texts from labels where the data has
      them, and from a teacher elsewhere.
    recorded: the types of `core.recorded` that it takes in place of a teacher's
      logits.
    module: the module that registered it.
  """

  function: Callable
  on: Union[str, tuple[str, ...]]
  example: Optional[dict[str, tuple[int, ...]]]
  relational: bool
  any_width: bool
  additive: bool
  scores: bool
  recorded: tuple[type, ...]
  module: str

  @property
  def kinds(self) -> tuple[str, ...]:
    """What it compares, one or several."""
    return (self.on,) if isinstance(self.on, str) else self.on

  @property
  def needs_teacher(self) -> bool:
    """Whether it always needs a teacher: `teacher` has no default."""
    teacher = inspect.signature(self.function).parameters['teacher']
    return teacher.default is inspect.Parameter.empty


class ModelEntry(NamedTuple):
  """A registered model.

  Attributes:
    function: a Haiku function `(inputs, *, is_training, **options) -> logits`.
    taps: `{kind: glob}`, the modules to capture unless the config names others.
    tensor: `{glob over parameters: axis}`, the parameters to split over the
      mesh axis `tensor` unless the config names others.
    block_options: the options that hold numbers of blocks.
    task: what it predicts, or a function of its options that returns that; see
      `haikd.core.tasks`.
    module: the module that registered it.
  """

  function: Callable
  taps: dict[str, str]
  tensor: dict[str, int]
  block_options: tuple[str, ...]
  task: Union[None, str, Callable[..., Optional[str]]]
  module: str


class DatasetEntry(NamedTuple):
  """A registered data set.

  Attributes:
    function: `(split, **options) -> Source`; see `haikd.data.Source`.
    spec: `(**options) -> Spec`, the shapes and dtypes of an example, or None.
    tasks: the tasks that its targets fit, or a function of its options that
      returns them; see `haikd.core.tasks`.
    module: the module that registered it.
  """

  function: Callable
  spec: Optional[Callable]
  tasks: Union[None, tuple[str, ...], Callable[..., Any]]
  module: str


class MetricEntry(NamedTuple):
  """A registered metric.

  Attributes:
    function: see `haikd.register_metric`.
    whole_split: whether it needs all examples of a split at once.
    less_is_better: whether the smaller of two values is the better one.
    module: the module that registered it.
  """

  function: Callable
  whole_split: bool
  less_is_better: bool
  module: str


class AlignerEntry(NamedTuple):
  """A registered aligner.

  Attributes:
    function: a Haiku function; see `haikd.core.protocols.Aligner`.
    lazy: whether it takes lazy logits and maps.
    keeps_logits: whether it returns logits and their mask as they came.
    calibrate: see `registry.register_aligner`, or None.
    all_layers: whether it gets all layers of a term at once.
    module: the module that registered it.
  """

  function: Callable
  lazy: bool
  keeps_logits: bool
  calibrate: Optional[Callable]
  all_layers: bool
  module: str
