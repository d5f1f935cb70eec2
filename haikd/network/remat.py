"""What a network keeps for its backward pass, and what it computes again.

A method interceptor wraps the modules of a glob, blocks as a rule, in
`hk.remat`, so that any network can be trained this way, in or out of
`hk.layer_stack`. What is kept follows from a policy:

  none     everything; the fastest, and the most memory.
  gathers  everything but gathered parameters: each device keeps its own part
           of them and gathers again when the gradient comes back.
  dots     the results of matrix products with parameters.
  full     nothing but what passes between blocks.
"""

from collections.abc import Callable
from typing import Any, Optional

import haiku as hk
import jax

from haikd.core import checks
from haikd.core import globs


def rematerialised(function: Callable, glob: Optional[str], policy: str,
                   where: str) -> Callable:
  """Makes the modules of a glob keep only what a policy says.

  Of modules inside one another the outermost counts.

  Args:
    function: a Haiku function of arrays, to be called inside a transform.
    glob: over module names, see `globs.matches`; None to take the function as a
      whole.
    policy: one of `rules.REMATS`.
    where: the part of the config that names them, for messages.

  Returns:
    A function that computes the same.

  Raises:
    ConfigError: when it is called: the glob matches no module.
  """
  if policy == 'none':
    return function
  kept = _POLICIES[policy]
  if glob is None:
    return hk.remat(function, policy=kept)
  seen, inside, matched = {}, False, False

  def keep_less(next_method, args, kwargs, context):
    nonlocal inside, matched
    if context.method_name != '__call__':
      return next_method(*args, **kwargs)
    name = globs.parts(context.module.module_name)
    seen['/'.join(name)] = True
    if inside or not globs.matches(glob, name):
      return next_method(*args, **kwargs)
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array)}

    def call(arrays):
      merged = [arrays.get(i, x) for i, x in enumerate(leaves)]
      args, kwargs = structure.unflatten(merged)
      return next_method(*args, **kwargs)

    inside = matched = True
    try:
      return hk.remat(call, policy=kept)(arrays)
    finally:
      inside = False

  def keeping_less(*args):
    with hk.intercept_methods(keep_less):
      outputs = function(*args)
    if not matched:
      raise checks.ConfigError(
          f'remat.rematerialised: {where}.remat_modules must match a module '
          f'that is called; got {glob!r}. {checks.suggest(glob, seen)}')
    return outputs

  return keeping_less


def _is_no_gather(primitive: Any, *unused, **also_unused) -> bool:
  return not primitive.name.startswith('all_gather')


_POLICIES = dict(
    gathers=_is_no_gather,
    dots=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    full=jax.checkpoint_policies.nothing_saveable)
