"""Parts of what is trained that are frozen, or have their own learning rate.

Globs name modules and parameters of the student, such as `block_0/attn`, and,
if they begin with `losses/`, what losses and their alignments learn:
`losses/<term>/<layer>/<module>/<parameter>`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from haikd.core import base
from haikd.core import checks
from haikd.core import globs

_FROZEN, _TRAINED = 'frozen', 'trained'
_LOSSES = 'losses'  # Begins the names of what losses learn.


def check(field: str, patterns: Sequence[str], params: base.Params) -> None:
  """Refuses globs that match nothing.

  Args:
    field: the config field that has them, for messages.
    patterns: globs.
    params: what is trained, or its shapes.

  Raises:
    ConfigError: a glob matches nothing; the message has the closest name.
  """
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for pattern in patterns:
    if any(_matches((pattern,), path) for path in paths):
      continue
    names = [_name(path) for path in paths]
    known = {'/'.join(name[max(end - size, 0):end]) for name in names
             if name[0] != _LOSSES
             for end in range(1, len(name) + 1) for size in (1, 2)}
    known |= {'/'.join(name[:end]) for name in names if name[0] == _LOSSES
              for end in range(2, len(name) + 1)}
    raise checks.ConfigError(
        f'{field} must match modules or parameters; got {pattern!r}. '
        f'{checks.suggest(pattern, known)}')


def of_network(patterns: Iterable[str]) -> tuple[str, ...]:
  """Returns the globs that do not name what losses learn."""
  return tuple(x for x in patterns if globs.parts(x)[:1] != [_LOSSES])


def check_frozen(field: str, patterns: Sequence[str],
                 params: base.Params) -> None:
  """Refuses globs that match nothing, or everything.

  Args:
    field: the config field that has them, for messages.
    patterns: globs.
    params: what is trained, or its shapes.

  Raises:
    ConfigError: a glob matches nothing, or nothing of the student is left.
  """
  check(field, patterns, params)
  if not jax.tree.leaves(trained(params, patterns).student):
    raise checks.ConfigError(
        f'{field} must leave parameters to train; got {tuple(patterns)}, which '
        'match all of them. Narrow the globs.')


def freeze(optimizer: optax.GradientTransformation,
           patterns: Sequence[str]) -> optax.GradientTransformation:
  """Returns an optimizer that neither changes nor follows frozen parameters.

  Args:
    optimizer: of what is trained; it sees nothing else, also not in its norms.
    patterns: globs; none return the optimizer as it is.
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
    multipliers: what the learning rate is multiplied by, as {glob: factor};
      factors of all that match.
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
    patterns: globs.
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
  name = _name(path)
  return any(globs.matches_within(pattern, name) for pattern in patterns
             if (globs.parts(pattern)[:1] == [_LOSSES]) == (name[0] == _LOSSES))


def _name(path) -> list[str]:
  """Returns the parts of the name of a leaf of `base.Params`."""
  tree, *keys = (jax.tree_util.keystr((key,), simple=True) for key in path)
  name = globs.parts('/'.join(keys))
  return name if tree == 'student' else [_LOSSES, *name]
