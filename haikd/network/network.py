"""A network from its config: a registered model, its precision and its taps."""

from collections.abc import Callable, Iterable
import contextlib
import inspect
from typing import Any, NamedTuple, Optional

import haiku as hk
import jax

from haikd import config as config_lib
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.network import precision
from haikd.network import remat
from haikd.network.capture import \
    capture  # The package has the function by this name.


class NetworkOutput(NamedTuple):
  """What a network gives for a batch.

  Attributes:
    logits: `[B, V]` or `[B, N, V]`, or LinearLogits; or, of an encoder, an
      Embedding in place of them.
    taps: `{kind: values in call order}`.
  """

  logits: base.Output
  taps: base.Taps


class Network(NamedTuple):
  """A Haiku network, ready to be initialised and applied.

  Attributes:
    title: the part of the config it comes from, for messages.
    init: `(rng, batch) -> (params, state)`; both float32.
    apply: `(params, state, rng, batch, *, is_training, batch_axes=(),
      gather=None) -> (NetworkOutput, state)`; casts parameters and inputs to
      the compute dtype. Without a key, as in evaluation, it uses a fixed one.
      `batch_axes` are the mesh axes over which BatchNorm takes its statistics;
      `gather(part, shape, dtype)` makes whole a parameter of which the device
      has a part, where it is used.
    tensor: `{glob over parameters: axis}` of what is split over `tensor`.
    placement: those of its globs that stand in the config.
  """

  title: str
  init: Callable[..., tuple[Any, Any]]
  apply: Callable[..., tuple[NetworkOutput, Any]]
  tensor: dict[str, Any]
  placement: tuple[str, ...]

  def infer(self, frozen: base.Variables, batch: base.Batch,
            gather: Optional[Callable] = None) -> NetworkOutput:
    """Returns what it gives when it is used and not trained.

    Args:
      frozen: its parameters and state.
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
                  num_classes: int,
                  kinds: Iterable[str] = ()) -> Network:
  """Builds a network.

  Args:
    config: the fields of `haikd.config.network()`.
    title: 'student' or 'teacher', for messages.
    num_classes: handed to a model that takes `num_classes`, unless its options
      say otherwise.
    kinds: the kinds of taps that some loss uses; nothing else is captured.

  Returns:
    A Network.

  Raises:
    ConfigError: an unknown model or option, or a kind that has no tap.
  """
  where = f'config.{title}'
  entry = registry.models[config.model]
  model, options = entry.function, dict(config.options)
  names = checks.option_names(model)
  if 'num_classes' in names:
    options.setdefault('num_classes', num_classes)
  checks.check_options(
      f'{where}.options',
      model,
      options,
      reserved=(next(iter(inspect.signature(model).parameters)), 'is_training',
                'mask'))
  taps = _taps(where, config, entry, kinds)
  # Those of the config come first, and in place of the model's own.
  rules = {**config.placement, **entry.tensor, **config.placement}
  policy = precision.policy(config.precision)
  blocks = config.remat_modules or entry.taps.get('features')

  def forward(batch, is_training, batch_axes, gather):
    extra = {'mask': batch.mask} if 'mask' in names else {}
    with contextlib.ExitStack() as stack:
      stack.enter_context(precision.norms_in_float32())
      stack.enter_context(precision.synchronised_batch_norm(batch_axes))
      if gather is not None:
        stack.enter_context(gathered(gather, policy.compute_dtype))
      call = lambda inputs: model(
          inputs, is_training=is_training, **extra, **options)
      if not is_training or hk.running_init():
        return call(batch.inputs)
      kept = config.remat or ('none' if gather is None else 'gathers')
      return remat.rematerialised(call, blocks, kept, where)(batch.inputs)

  network = hk.transform_with_state(capture(forward, taps))

  def init(rng, batch):
    return network.init(rng, batch, True, (), None)

  def apply(params, state, rng, batch, *, is_training, batch_axes=(),
            gather=None):
    # A network may ask for a key even when it has no use for one.
    rng = jax.random.key(0) if rng is None else rng
    if gather is None:
      params = policy.cast_to_compute(params)
    batch = batch._replace(inputs=policy.cast_to_compute(batch.inputs))
    (logits, values), state = network.apply(params, state, rng, batch,
                                            is_training, batch_axes, gather)
    return NetworkOutput(logits, values), state

  return Network(title, init, apply, rules, tuple(config.placement))


def gathered(gather: Callable, dtype: Any) -> contextlib.AbstractContextManager:
  """Gathers every parameter that is asked for; enter it in a transform.

  Args:
    gather: as for `Network.apply`.
    dtype: what floating-point parameters are used in; None for their own.

  Returns:
    A context manager.
  """

  def getter(next_getter, value, context):
    wanted = dtype if dtype and checks.is_real(value) else value.dtype
    return next_getter(gather(value, context.original_shape, wanted))

  return hk.custom_getter(getter)


def count_parameters(params: base.ArrayTree) -> int:
  """Returns how many numbers a tree of parameters holds."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _taps(where, config, entry, kinds):
  known = {**entry.taps, **config.taps}
  for kind in kinds:
    if kind not in known:
      raise checks.ConfigError(
          f'network.build_network: {where}.taps must say where to find '
          f'{kind!r}, which a loss uses; got {sorted(known) or "no taps"} for '
          f'model {config.model!r}. Add {where}.taps.{kind} = a glob over '
          'module names.')
  return {kind: known[kind] for kind in kinds}
