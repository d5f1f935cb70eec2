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

import contextlib
from typing import Any

import haiku as hk
import jax

from haikd import names


@contextlib.contextmanager
def rematerialised(glob: str, policy: str):
  """Makes the modules of a glob keep only what a policy says.

  Of modules inside one another the outermost counts. Modules that are called
  while parameters are initialised are left alone.

  Args:
    glob: over module names, see `names.matches`.
    policy: one of `validation.REMATS`.

  Yields:
    None; enter it inside the function that is transformed.
  """
  inside = False

  def keep_less(next_method, args, kwargs, context):
    nonlocal inside
    wanted = (not inside and context.method_name == '__call__' and
              names.matches(glob, names.parts(context.module.module_name)))
    if not wanted or hk.running_init():
      return next_method(*args, **kwargs)
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array)}

    def call(arrays):
      merged = [arrays.get(i, x) for i, x in enumerate(leaves)]
      args, kwargs = structure.unflatten(merged)
      return next_method(*args, **kwargs)

    inside = True
    try:
      return hk.remat(call, policy=_POLICIES[policy])(arrays)
    finally:
      inside = False

  if policy == 'none':
    yield
  else:
    with hk.intercept_methods(keep_less):
      yield


def _is_no_gather(primitive: Any, *unused, **also_unused) -> bool:
  return not primitive.name.startswith('all_gather')


_POLICIES = dict(
    gathers=_is_no_gather,
    dots=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    full=jax.checkpoint_policies.nothing_saveable)
