"""Which numbers are computed in which dtype.

Parameters, their updates and sums over many values stay in float32; matrix
products run in the dtype of the config. Method interceptors reach the norms
inside networks, users' networks included, so that no model has to do anything.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
from typing import Any, Union

import haiku as hk
import jax
import jax.numpy as jnp
import jmp

from haikd.config import rules
from haikd.core import base
from haikd.core import checks

_NORMS = (hk.BatchNorm, hk.GroupNorm, hk.LayerNorm, hk.RMSNorm)

# The largest power of two in float16. From there the scale halves until the
# gradients are finite, at the cost of one step for every halving.
_FIRST_SCALE = 2.0**15


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class DynamicLossScale(jmp.DynamicLossScale):
  """jmp's dynamic loss scale, as a pytree whose leaves may be anything.

  `jmp.DynamicLossScale` requires array leaves, so that `jax.tree.map` cannot
  make a tree of shardings or of partition specs from a state that contains it.
  Only `loss_scale` and `counter` are leaves; `min_loss_scale` is always 1.
  """

  def __post_init__(self):
    """Does not check the leaves."""

  def adjust(self, grads_finite: base.Array) -> 'DynamicLossScale':
    """Returns the scale for the next step; see `jmp.DynamicLossScale`."""
    adjusted = super().adjust(grads_finite)
    return DynamicLossScale(adjusted.loss_scale, adjusted.counter, self.period,
                            self.factor, self.min_loss_scale)


LossScale = Union[jmp.NoOpLossScale, DynamicLossScale]


def policy(precision: str) -> jmp.Policy:
  """Returns the jmp policy of a network.

  Parameters are float32 and are cast to `precision` where they are used. The
  output keeps the compute dtype: a cast to float32 would restore no digits and
  would double the memory of `LinearLogits`; every loss casts to float32 itself.
  Haiku state (moving statistics) is not part of a policy and stays float32.

  Args:
    precision: one of `rules.PRECISIONS`.

  Returns:
    A policy whose `cast_to_param` and `cast_to_compute` leave integers and
    booleans unchanged.

  Raises:
    ConfigError: an unknown precision.
  """
  _check_precision(precision)
  compute = jmp.get_policy(f'params=float32,compute={precision}').compute_dtype
  return jmp.Policy(
      param_dtype=jnp.float32, compute_dtype=compute, output_dtype=compute)


@contextlib.contextmanager
def norms_in_float32():
  """Makes Haiku's norms compute in float32 and return their input's dtype.

  Covers hk.BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm and their
  subclasses, wherever a network calls them: a mean of squares in bfloat16 has
  only two to three digits. BatchNorm's moving statistics are then float32, too.
  A norm that does not derive from these is not reached.

  Yields:
    None; enter it inside the transformed function, or around `apply`.
  """

  def in_float32(next_method, args, kwargs, context):
    if not _is_norm_call(context, _NORMS):
      return next_method(*args, **kwargs)
    inputs = args[0] if args else kwargs.get('inputs', kwargs.get('x'))
    dtype = jnp.result_type(inputs)
    args, kwargs = jax.tree.map(_widen, (args, kwargs))
    return next_method(*args, **kwargs).astype(dtype)

  with hk.intercept_methods(in_float32):
    yield


@contextlib.contextmanager
def synchronised_batch_norm(axes: Union[str, Sequence[str]]):
  """Makes every hk.BatchNorm take its statistics over the global batch.

  If each device normalised by its shard, the trained network would depend on
  the number of devices. A BatchNorm whose author chose `cross_replica_axis`
  keeps it.

  Args:
    axes: the mesh axes that the batch is split over. They must be bound, so
      enter this only inside `jax.shard_map`, and not around `init`.

  Yields:
    None.
  """

  def synchronised(next_method, args, kwargs, context):
    module = context.module
    author_axis = getattr(module, 'cross_replica_axis', None)
    if not _is_norm_call(context, hk.BatchNorm) or author_axis:
      return next_method(*args, **kwargs)
    module.cross_replica_axis = axes
    try:
      return next_method(*args, **kwargs)
    finally:
      module.cross_replica_axis = author_axis

  with hk.intercept_methods(synchronised):
    yield


def initial_loss_scale(precision: str) -> LossScale:
  """Returns the loss scale that training begins with.

  Gradients below 6e-8 vanish in float16, so its loss is multiplied by a scale
  that grows while gradients are finite and halves when they are not. The other
  precisions have the exponent range of float32 and need no loss scale.

  Args:
    precision: the student's, one of `rules.PRECISIONS`.

  Returns:
    A jmp loss scale, a pytree for the `TrainState`.

  Raises:
    ConfigError: an unknown precision.
  """
  _check_precision(precision)
  if precision != 'float16':
    return jmp.NoOpLossScale()
  return DynamicLossScale(
      loss_scale=jnp.float32(_FIRST_SCALE), counter=jnp.int32(0))


def keep_if(finite: base.Array, new: base.ArrayTree,
            old: base.ArrayTree) -> base.ArrayTree:
  """Returns `new` if the gradients were finite, else `old`.

  With a dynamic loss scale gradients overflow now and then. A step with an
  overflow must leave no trace in parameters, optimizer or state.

  Args:
    finite: bool scalar, as from `jmp.all_finite`.
    new: a pytree of arrays.
    old: a pytree of the same structure, shapes and dtypes.

  Returns:
    `new` or `old`.
  """
  return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def _is_norm_call(context: hk.MethodContext, kinds: Any) -> bool:
  return (context.method_name == '__call__' and
          isinstance(context.module, kinds))


def _widen(value):
  if isinstance(value, jax.Array) and checks.is_real(value):
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))
  return value


def _check_precision(precision: str) -> None:
  if precision not in rules.PRECISIONS:
    raise checks.ConfigError(
        f'precision must be a known name; got {precision!r}. '
        f'{checks.suggest(str(precision), rules.PRECISIONS)}')
