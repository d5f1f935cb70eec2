"""The optax chain of a config: clip, scale, decay, and the learning rate.

`weight_decay` means the same for every optimizer: one step takes the fraction
`learning_rate * weight_decay` off kernels and embeddings, and nothing off other
parameters. A learning rate does not mean the same: Adafactor's is relative to
the parameters, and Muon's suits orthogonal updates, unless its option
`consistent_rms=0.2` makes them as large as Adam's.
"""

from collections.abc import Callable
import functools
import re

import jax
import jax.numpy as jnp
import optax

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import globs
from haikd.core import signatures
from haikd.engine import parts

SCHEDULES = ('constant', 'cosine', 'linear')

# Words in the name of a parameter that is added to the activations, or
# multiplied with them, as a vector; it is not decayed.
_VECTOR_WORDS = frozenset(
    ('b', 'bias', 'biases', 'scale', 'offset', 'shift', 'gain', 'gamma', 'beta',
     'alpha', 'temperature', 'token', 'tokens', 'position', 'positions',
     'positional', 'pos'))
_EMBEDDING_WORDS = frozenset(('embed', 'embedding', 'embeddings'))
_TOKEN_WORDS = frozenset(('token', 'tokens'))


def build_schedule(config: config_lib.ConfigDict,
                   steps: int,
                   *,
                   field: str = 'config.optimizer') -> optax.Schedule:
  """Returns the learning rate as a function of the number of steps taken.

  The warm-up rises in equal parts and reaches the peak after `warmup_steps`
  steps; its first step is one part, not zero. The decay reaches
  `final_fraction` of the peak when all `steps` have been taken. A run that is
  shorter than its warm-up ends before the peak.

  Args:
    config: see `config.optimizer`.
    steps: length of the run.
    field: the config field that `config` comes from, for messages.

  Returns:
    An optax schedule: int32 scalar to float32 scalar.

  Raises:
    ConfigError: an unknown schedule.
  """
  peak, warmup = config.learning_rate, config.warmup_steps
  fraction = config.final_fraction
  decay_steps = max(steps - warmup, 1)
  if config.schedule == 'constant':
    decay = optax.constant_schedule(peak)
  elif config.schedule == 'cosine':
    decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=fraction)
  elif config.schedule == 'linear':
    decay = optax.linear_schedule(peak, fraction * peak, decay_steps)
  else:
    raise checks.ConfigError(
        f'{field}.schedule must be a known schedule; got {config.schedule!r}. '
        f'{checks.suggest(config.schedule, SCHEDULES)}')
  if not warmup:
    return decay
  rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  return optax.join_schedules((rise, decay), (warmup,))


def build_optimizer(
    config: config_lib.ConfigDict,
    steps: int,
    *,
    field: str = 'config.optimizer') -> optax.GradientTransformation:
  """Returns the optax transformation of `config.optimizer`.

  Args:
    config: see `config.optimizer`. `options` go to the optax function of that
      name; they cannot be what haikd sets itself (learning rate, decay and its
      mask).
    steps: length of the run.
    field: the config field that `config` comes from, for messages.

  Returns:
    Clipping by the global norm, if requested, and the optimizer, with frozen
    parts and learning rates by part. It takes a `base.Params` of global arrays,
    since it takes norms of them.

  Raises:
    ConfigError: an unknown optimizer, schedule or option.
  """
  if config.name not in _OPTIMIZERS:
    raise checks.ConfigError(
        f'{field}.name must be a known optimizer; got {config.name!r}. '
        f'{checks.suggest(config.name, _OPTIMIZERS)}')
  decay, clip = config.weight_decay, config.clip_norm
  build, function, reserved = _OPTIMIZERS[config.name]
  options = config_lib.plain(config.options)
  signatures.check_options(
      f'{field}.options', function, options, reserved=reserved)
  chain = build(build_schedule(config, steps, field=field), decay, **options)
  chain = parts.multiply(chain, config.lr_multipliers)
  if clip is not None:
    chain = optax.chain(optax.clip_by_global_norm(clip), chain)
  return parts.freeze(chain, config.frozen)


def decay_mask(params: base.ArrayTree) -> base.ArrayTree:
  """Returns which parameters are decayed: kernels and embeddings.

  The name decides, since a bias inside `hk.layer_stack` is a matrix. Biases,
  scales and offsets are not decayed, nor are learned positions and class
  tokens, which are added to the activations as a bias is. A scalar or vector
  outside a stack is not decayed whatever its name.

  Args:
    params: a pytree whose leaves lie at `.../<module>/<parameter>`.

  Returns:
    A pytree of bool of the same structure.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: _is_decayed(path, leaf), params)


def update_ema(ema: base.ArrayTree, params: base.ArrayTree, decay: float,
               step: base.Array) -> base.ArrayTree:
  """Moves a running mean of the parameters towards them.

  The mean starts as a copy of the first parameters. The decay rises as
  (1 + step) / (10 + step) until it reaches `decay`, so that the mean soon
  forgets them; it needs no bias correction and can be used at any step.

  Args:
    ema: the mean, float32.
    params: the parameters after the update, of the same structure.
    decay: the fraction of the old mean that one step keeps, between 0 and 1.
    step: int32 scalar, the number of updates before this one.

  Returns:
    The new mean, float32.
  """
  step = jnp.asarray(step, jnp.float32)
  kept = jnp.minimum(decay, (1 + step) / (10 + step))
  return optax.incremental_update(params, ema, 1 - kept)


def _adamw(schedule, decay, **options):
  return optax.adamw(
      schedule, weight_decay=decay, mask=decay_mask, **options)


def _sgd(schedule, decay, **options):
  # The decay goes through the momentum with the gradient, as is customary for
  # networks trained with SGD.
  return optax.chain(
      optax.add_decayed_weights(decay, decay_mask),
      optax.sgd(schedule, **options))


def _lamb(schedule, decay, **options):
  return optax.lamb(schedule, weight_decay=decay, mask=decay_mask, **options)


def _adafactor(schedule, decay, **options):
  # optax does not multiply its rate of decay by the learning rate.
  return optax.adafactor(
      schedule,
      weight_decay_rate=lambda count: schedule(count) * decay,
      weight_decay_mask=decay_mask,
      **options)


def _muon(schedule, decay, **options):
  # optax's muon would decay all parameters that it leaves to Adam, or none of
  # them; the decay is therefore added here for both groups.
  return optax.chain(
      optax.contrib.muon(
          schedule, muon_weight_dimension_numbers=_muon_axes, **options),
      optax.add_decayed_weights(lambda count: -schedule(count) * decay,
                                decay_mask))


def _muon_axes(params):
  """Returns the axes of parameters for Muon; None leaves a parameter to Adam.

  Muon trains the matrices of hidden layers: kernels with two axes, or three
  inside `hk.layer_stack`, where each layer's matrix is treated separately. Adam
  trains embeddings, vectors and kernels of convolutions, at the same learning
  rate.
  """

  def axes(path, leaf):
    module, name = _module_and_name(path)
    # Also in a stack that a user has named `layer_stack`.
    is_stacked = globs.LAYER_STACK.strip('_') in module
    is_matrix = leaf.ndim == 2 + is_stacked
    if (not is_matrix or not _is_decayed(path, leaf) or
        _words(name) & _EMBEDDING_WORDS):
      return None
    return optax.contrib.MuonDimensionNumbers(-2, -1)

  return jax.tree_util.tree_map_with_path(axes, params)


_OPTIMIZERS: dict[str, tuple[Callable, Callable, tuple[str, ...]]] = {
    'adamw': (_adamw, optax.adamw, ('learning_rate', 'weight_decay', 'mask')),
    'sgd': (_sgd, optax.sgd, ('learning_rate',)),
    'lamb': (_lamb, optax.lamb, ('learning_rate', 'weight_decay', 'mask')),
    'adafactor': (_adafactor, optax.adafactor,
                  ('learning_rate', 'weight_decay_rate', 'weight_decay_mask')),
    'muon': (_muon, optax.contrib.muon,
             ('learning_rate', 'weight_decay', 'weight_decay_mask',
              'adam_weight_decay', 'muon_weight_dimension_numbers')),
}


def _is_decayed(path, leaf):
  module, name = _module_and_name(path)
  words = _words(name)
  if words & _EMBEDDING_WORDS:
    # An hk.Embed calls its parameter `embeddings`; the module's name says what
    # it embeds. Embeddings of a vocabulary's tokens are decayed.
    words = (words | _words(module.split('/')[-1])) - _TOKEN_WORDS
  return jnp.ndim(leaf) >= 2 and not words & _VECTOR_WORDS


def _module_and_name(path):
  keys = [jax.tree_util.keystr((key,), simple=True) for key in path[-2:]]
  return keys[0] if len(keys) == 2 else '', keys[-1]


@functools.cache
def _words(name):
  return frozenset(re.split(r'[^a-z]+', name.lower()))
