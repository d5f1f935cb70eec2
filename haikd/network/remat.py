"""Rematerialisation: what a network saves for its backward pass.

A method interceptor wraps the modules that match a glob, usually blocks, in
`hk.remat`. This works for any network, inside and outside `hk.layer_stack`. The
policy decides what is saved; the rest is recomputed:

  none     everything; the fastest, and the most memory.
  gathers  everything but gathered parameters: each device keeps its part of
           them and gathers again in the backward pass.
  dots     the results of matrix products with parameters.
  full     only the inputs of the blocks.
"""

from collections.abc import Callable, Sequence
from typing import Any, Union

import haiku as hk
import jax

from haikd.core import checks
from haikd.core import globs
from haikd.core import notes


def rematerialised(function: Callable, blocks: Union[None, str, Sequence[str]],
                   policy: str, *, strict: bool = True) -> Callable:
  """Makes the modules that match globs save only what a policy allows.

  If matching modules are nested, only the outermost is wrapped.

  Args:
    function: a Haiku function of arrays, to be called inside a transform.
    blocks: a glob over module names, see `globs.matches`, or several; None to
      wrap the function itself.
    policy: one of `rules.REMATS`.
    strict: whether some module has to match.

  Returns:
    A function that computes the same.

  Raises:
    ConfigError: when the returned function is called: it is strict, and
      no module matches.
  """
  if policy == 'none':
    return function
  saveable = _POLICIES[policy]
  if blocks is None:
    return hk.remat(function, policy=saveable)
  patterns = (blocks,) if isinstance(blocks, str) else tuple(blocks)
  called: dict[str, bool] = {}  # Names of all modules that were called.
  inside = matched = False

  def rematted(next_method, args, kwargs, context):
    nonlocal inside, matched
    if context.method_name != '__call__':
      return next_method(*args, **kwargs)
    name = globs.parts(context.module.module_name)
    called['/'.join(name)] = True
    if inside or not any(globs.matches(glob, name) for glob in patterns):
      return next_method(*args, **kwargs)
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array)}

    def call(arrays):
      merged = [arrays.get(i, x) for i, x in enumerate(leaves)]
      args, kwargs = structure.unflatten(merged)
      return next_method(*args, **kwargs)

    inside = matched = True
    try:
      return hk.remat(call, policy=saveable)(arrays)
    finally:
      inside = False

  def wrapped(*args):
    with hk.intercept_methods(rematted):
      outputs = function(*args)
    if not matched and not strict:
      notes.say(f'no module matches {blocks!r}, so that gathered parameters '
                'are kept until the backward pass. remat_modules of the '
                'network names its blocks.')
    if strict and not matched:
      raise checks.ConfigError(
          'remat_modules must match a module that is called; got '
          f'{blocks!r}. {checks.suggest(patterns[0], called)}')
    return outputs

  return wrapped


def _is_no_gather(primitive: Any, *unused, **also_unused) -> bool:
  return not primitive.name.startswith('all_gather')


_POLICIES = dict(
    gathers=_is_no_gather,
    dots=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    full=jax.checkpoint_policies.nothing_saveable)
