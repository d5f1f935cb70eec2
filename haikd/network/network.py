"""A network from its config: a registered model, its precision and its taps."""

from collections.abc import Callable, Collection, Iterable, Iterator
import contextlib
import difflib
import inspect
import re
from typing import Any, NamedTuple, Optional

import haiku as hk
import jax

from haikd import config as config_lib
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import base
from haikd.core import checks
from haikd.core import entries
from haikd.core import registry
from haikd.core import signatures
from haikd.core import transposed
from haikd.network import precision
from haikd.network import remat
from haikd.network.capture import \
    capture  # The package has the function by this name.

# So alike are a name and its misspelling, as `difflib` measures it from 0 to 1.
_MISSPELT = 0.9


class NetworkOutput(NamedTuple):
  """The outputs of a network for a batch.

  Attributes:
    logits: `[B, V]` or `[B, N, V]`, or LinearLogits; an encoder has an
      Embedding instead.
    taps: `{kind: values in call order}`.
  """

  logits: base.Output
  taps: base.Taps


class Network(NamedTuple):
  """A Haiku network, ready to be initialised and applied.

  Attributes:
    title: the name of its config, 'student' or 'teacher'; its part of a batch,
      and for messages.
    init: `(rng, batch) -> (params, state)`; both float32.
    apply: `(params, state, rng, batch, *, is_training, batch_axes=(),
      gather=None) -> (NetworkOutput, state)`; casts parameters and inputs to
      the compute dtype. If `rng` is None, as in evaluation, it uses a fixed
      key. `batch_axes` are the mesh axes over which BatchNorm takes its
      statistics. `gather(part, shape, dtype)` returns the full parameter, where
      it is used, of the part that the device holds.
    tensor: `{glob over parameters: axis that is split over `tensor`}`.
    placement: the globs of `tensor` that the config gives.
  """

  title: str
  init: Callable[..., tuple[Any, Any]]
  apply: Callable[..., tuple[NetworkOutput, Any]]
  tensor: dict[str, Any]
  placement: tuple[str, ...]

  def infer(self, frozen: base.Variables, batch: base.Batch,
            gather: Optional[Callable] = None) -> NetworkOutput:
    """Runs the network in inference mode.

    Args:
      frozen: the network's parameters and state.
      batch: the batch.
      gather: as for `apply`.
    """
    output, _ = self.apply(
        frozen.params,
        frozen.state,
        None,
        batch,
        is_training=False,
        gather=gather)
    return output


def build_network(config: config_lib.ConfigDict,
                  *,
                  title: str,
                  num_classes: Optional[int],
                  kinds: Iterable[str] = ()) -> Network:
  """Builds a network.

  Args:
    config: the fields of `haikd.config.network()`.
    title: 'student' or 'teacher'; which part of a batch it gets, and for
      messages.
    num_classes: passed to a model that takes `num_classes`, unless its options
      give another.
    kinds: the kinds of taps that some loss uses; nothing else is captured.

  Returns:
    A Network.

  Raises:
    ConfigError: an unknown model or option, or a kind without a tap. `init` and
      `apply` raise it for an invalid option, and for globs that match nothing.
  """
  field = f'config.{title}'
  entry = registry.models.find(config.model, f'config.{title}.model')
  model, options = entry.function, config_lib.plain(config.options)
  takes_mask = 'mask' in signatures.option_names(model)
  inputs_name = next(iter(inspect.signature(model).parameters))
  reserved = (inputs_name, 'is_training', 'mask')
  option_names = signatures.option_names(model, reserved=reserved)
  if 'num_classes' in option_names:
    options.setdefault('num_classes', num_classes)
  signatures.check_options(
      f'{field}.options', model, options, reserved=reserved)
  taps = _taps(field, config, entry, kinds)
  # The config's rules come first and override the model's.
  rules = {**config.placement, **entry.tensor, **config.placement}
  policy = precision.policy(config.precision)
  blocks = config.remat_modules or entry.taps.get('features')

  def forward(view, is_training, batch_axes, gather):
    extra = {'mask': view.mask} if takes_mask else {}
    with contextlib.ExitStack() as stack:
      stack.enter_context(precision.norms_in_float32())
      stack.enter_context(precision.synchronised_batch_norm(batch_axes))
      if gather is not None:
        stack.enter_context(gathered(gather, policy.compute_dtype))
      call = lambda inputs: model(
          inputs, is_training=is_training, **extra, **options)
      if not is_training or hk.running_init():
        return call(view.inputs)
      saved = config.remat or ('none' if gather is None else 'gathers')
      # What runs on one device runs on many: only who asks for it must match.
      return remat.rematerialised(
          call, blocks, saved, strict=bool(config.remat))(view.inputs)

  network = hk.transform_with_state(capture(forward, taps))

  def init(rng, batch):
    with _errors_name_fields(field, config, option_names):
      return network.init(rng, batch.view(title), True, (), None)

  def apply(params, state, rng, batch, *, is_training, batch_axes=(),
            gather=None):
    # A network may ask for a key even where it does not use one.
    rng = jax.random.key(0) if rng is None else rng
    if gather is None:
      params = policy.cast_to_compute(params)
    view = batch.view(title)
    view = view._replace(inputs=policy.cast_to_compute(view.inputs))
    with _errors_name_fields(field, config, option_names):
      (logits, values), state = network.apply(params, state, rng, view,
                                              is_training, batch_axes, gather)
      _check_output(logits)
      logits = _first(logits, config.used_classes, num_classes)
    return NetworkOutput(logits, values), state

  return Network(title, init, apply, rules, tuple(config.placement))


def gathered(gather: Callable, dtype: Any) -> contextlib.AbstractContextManager:
  """Gathers every parameter where it is used; enter it in a transform.

  Args:
    gather: as for `Network.apply`.
    dtype: the dtype that floating-point parameters are used in; None for the
      one they are stored in.

  Returns:
    A context manager.
  """

  def getter(next_getter, value, context):
    is_cast = dtype and checks.is_real(value)
    compute_dtype = dtype if is_cast else value.dtype
    return next_getter(gather(value, context.original_shape, compute_dtype))

  return hk.custom_getter(getter)


def count_parameters(params: base.ArrayTree) -> int:
  """Returns the number of scalars in a tree of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _check_output(output: Any) -> None:
  """Raises ConfigError for an output that is neither logits nor vectors."""
  known = (jax.Array, base.LinearLogits, base.Embedding)
  if not isinstance(output, known):
    raise checks.ConfigError(
        'outputs must be logits [B, V], haikd.LinearLogits or '
        f'haikd.Embedding; got {_kind(output)}. Return the logits alone; '
        'haikd.tap offers anything else.')
  if isinstance(output, jax.Array) and output.ndim < 2:
    raise checks.ConfigError(
        f'outputs must be logits [B, V]; got shape={output.shape}. For one '
        'number an example return [B, 1].')


def _kind(output):
  if isinstance(output, dict):
    return f'a dict of {sorted(output)}'
  if isinstance(output, (tuple, list)):
    return f'a {type(output).__name__} of {len(output)}'
  return type(output).__name__


def _first(logits: base.Output, count: Optional[int],
           num_classes: Optional[int]) -> base.Output:
  """Returns the logits of the first classes.

  Args:
    logits: of all classes that the network has.
    count: the number of classes; None for all.
    num_classes: of the data; None if it has none.
  """
  if count is None or isinstance(logits, base.Embedding):
    return logits
  if not (num_classes or 1) <= count <= logits.shape[-1]:
    raise checks.ConfigError(
        f'used_classes must lie between {num_classes or 1}, the classes of the '
        f'data, and {logits.shape[-1]}, the logits of the network; got {count}.'
        ' Set it to None, or to the size of the vocabulary.')
  if isinstance(logits, base.LinearLogits):
    bias = None if logits.bias is None else logits.bias[:count]
    kernel = transposed.over_kernel(lambda x: x[:, :count], logits.kernel)
    return logits._replace(kernel=kernel, bias=bias)
  return logits[..., :count]


@contextlib.contextmanager
def _errors_name_fields(field: str, config: config_lib.ConfigDict,
                        options: Collection[str]) -> Iterator[None]:
  """Makes ConfigErrors begin with the config field that they are about.

  The message of a model begins with one of its options, and that of capture or
  remat with a field of the network.
  """
  try:
    yield
  except checks.ConfigError as err:
    name, = re.findall(r'^\w*', str(err))
    if name in options:
      raise checks.ConfigError(f'{field}.options.{err}') from err
    separator = '.' if name in config else ': '
    raise checks.ConfigError(f'{field}{separator}{err}') from err


def _taps(field: str, config: config_lib.ConfigDict,
          entry: entries.ModelEntry, kinds: Iterable[str]) -> dict[str, Any]:
  """Returns the globs of the kinds, from the config or else from the model."""
  globs = {**entry.taps, **config.taps}
  compared = {kind for name in registry.losses.names()
              for kind in registry.losses[name].kinds} - {'logits'}
  # One may have a name of its own, to look at what no loss compares.
  for kind in set(config.taps) - {*entry.taps, *compared, *kinds}:
    numbered = re.match('|'.join(f'{x}[0-9_]' for x in compared), kind)
    if not numbered and difflib.get_close_matches(
        kind, compared, cutoff=_MISSPELT):
      raise checks.ConfigError(
          f'{field}.taps.{kind} must be a kind that some loss compares, or be '
          f'called otherwise; got {kind!r}. {checks.suggest(kind, compared)}')
  for kind in kinds:
    if kind not in globs:
      raise checks.ConfigError(
          f'{field}.taps.{kind} must be given, since a loss uses it and model '
          f'{config.model!r} has no such tap; got {sorted(globs) or "no taps"}.'
          f' Set {field}.taps.{kind} to a glob over module names.')
  return {kind: globs[kind] for kind in kinds}
