"""Parts of a network that are frozen, or have a learning rate of their own."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from haikd.core import base
from haikd.core import checks
from haikd.core import globs

_FROZEN, _TRAINED = 'frozen', 'trained'


def check(field: str, patterns: Sequence[str], params: base.ArrayTree) -> None:
  """Refuses globs that match nothing in a network.

  Args:
    field: the config field that has them, for messages.
    patterns: globs over modules and parameters.
    params: Haiku parameters, or their shapes.

  Raises:
    ConfigError: a glob matches nothing; the message has the closest name.
  """
  names = [globs.parts(name) for name in _names(params)]
  for pattern in patterns:
    if not any(globs.matches_within(pattern, name) for name in names):
      known = {'/'.join(name[max(end - size, 0):end]) for name in names
               for end in range(1, len(name) + 1) for size in (1, 2)}
      raise checks.ConfigError(
          f'{field} must match modules or parameters; got {pattern!r}. '
          f'{checks.suggest(pattern, known)}')


def check_frozen(field: str, patterns: Sequence[str],
                 params: base.Params) -> None:
  """Refuses globs that match nothing, or everything.

  Args:
    field: the config field that has them, for messages.
    patterns: globs over modules and parameters of the student.
    params: what is trained, or its shapes.

  Raises:
    ConfigError: a glob matches nothing, or nothing of the student is left.
  """
  check(field, patterns, params.student)
  if not jax.tree.leaves(trained(params, patterns).student):
    raise checks.ConfigError(
        f'{field} must leave parameters to train; got {tuple(patterns)}, which '
        'match all of them. Narrow the globs.')


def freeze(optimizer: optax.GradientTransformation,
           patterns: Sequence[str]) -> optax.GradientTransformation:
  """Returns an optimizer that neither changes nor follows frozen parameters.

  Args:
    optimizer: of what is trained; it sees nothing else, also not in its norms.
    patterns: globs over modules and parameters of the student; none return the
      optimizer as it is.
  """
  if not patterns:
    return optimizer

  def labels(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _FROZEN if _matches(patterns, path) else _TRAINED,
        params)

  return optax.partition(
      {_TRAINED: optimizer, _FROZEN: optax.set_to_zero()}, labels)


def multiply(optimizer: optax.GradientTransformation,
             multipliers: Mapping[str, float]) -> optax.GradientTransformation:
  """Returns an optimizer with another learning rate for some parameters.

  Args:
    optimizer: its updates are proportional to the learning rate.
    multipliers: what the learning rate is multiplied by, as {glob over modules
      and parameters of the student: factor}; factors of all that match.
  """
  if not multipliers:
    return optimizer

  def scaled(path, update):
    factor = math.prod(factor for pattern, factor in multipliers.items()
                       if _matches((pattern,), path))
    return update * jnp.asarray(factor, update.dtype)

  return optax.chain(optimizer, optax.stateless(
      lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates)))


def trained(params: base.Params, patterns: Sequence[str]) -> base.Params:
  """Returns a tree shaped like `base.Params` with None for what is frozen.

  Args:
    params: a `base.Params`, of anything.
    patterns: globs over modules and parameters of the student.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: None if _matches(patterns, path) else leaf, params)


def fill(tree: base.ArrayTree, params: base.Params,
         make: Callable[[Any], Any] = lambda x: x) -> base.Params:
  """Returns what `trained` returned, with frozen leaves put back.

  Args:
    tree: from `trained`, or shaped like it.
    params: has the frozen leaves.
    make: what is put in place of one of these.
  """
  return jax.tree.map(
      lambda x, frozen: make(frozen) if x is None else x, tree, params,
      is_leaf=lambda x: x is None)


def _matches(patterns, path):
  """Returns whether some glob matches a leaf of `base.Params`."""
  keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
  if keys[0] != 'student':
    return False  # The parameters of alignments have no names for globs.
  name = globs.parts('/'.join(keys[1:]))
  return any(globs.matches_within(pattern, name) for pattern in patterns)


def _names(params):
  return [f'{module}/{name}' for module, parameters in params.items()
          for name in parameters]
