"""A network from its config: a registered model, its precision and its taps."""

from collections.abc import Callable, Iterable
import inspect
from typing import Any, NamedTuple

import haiku as hk
import jax

from haikd import base
from haikd import checks
from haikd import config as config_lib
from haikd import models  # noqa: F401  Registers the zoo.
from haikd import precision
from haikd import registry
from haikd.capture import capture  # The package has the function by this name.


class Output(NamedTuple):
  """What a network gives for a batch.

  Attributes:
    logits: `[B, V]` or `[B, N, V]`, or LinearLogits.
    taps: `{kind: values in call order}`.
  """

  logits: base.Logits
  taps: base.Taps


class Network(NamedTuple):
  """A Haiku network, ready to be initialised and applied.

  Attributes:
    title: the part of the config it comes from, for messages.
    init: `(rng, batch) -> (params, state)`; both float32.
    apply: `(params, state, rng, batch, *, is_training, batch_axes=()) ->
      (Output, state)`; casts parameters and inputs to the compute dtype.
      Without a key, as in evaluation, it uses a fixed one. `batch_axes` are
      the mesh axes over which BatchNorm takes its statistics.
  """

  title: str
  init: Callable[..., tuple[Any, Any]]
  apply: Callable[..., tuple[Output, Any]]


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
  policy = precision.policy(config.precision)

  def forward(batch, is_training, batch_axes):
    extra = {'mask': batch.mask} if 'mask' in names else {}
    with (precision.norms_in_float32(),
          precision.synchronised_batch_norm(batch_axes)):
      return model(batch.inputs, is_training=is_training, **extra, **options)

  network = hk.transform_with_state(capture(forward, taps))

  def init(rng, batch):
    return network.init(rng, batch, True, ())

  def apply(params, state, rng, batch, *, is_training, batch_axes=()):
    # A network may ask for a key even when it has no use for one.
    rng = jax.random.key(0) if rng is None else rng
    params = policy.cast_to_compute(params)
    batch = batch._replace(inputs=policy.cast_to_compute(batch.inputs))
    (logits, values), state = network.apply(params, state, rng, batch,
                                            is_training, batch_axes)
    return Output(logits, values), state

  return Network(title, init, apply)


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
