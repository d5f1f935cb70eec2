"""The leaves of a tree by name: how to choose and compare them."""

import json
from typing import Any

import jax

from haikd.core import base
from haikd.core import checks

Leaves = dict[str, Any]


def flatten(tree: base.ArrayTree) -> Leaves:
  """Returns the leaves of a tree by name, in the tree's order.

  Args:
    tree: any pytree; nodes without leaves, such as None, leave no trace.

  Returns:
    `{name: leaf}`; a name is the path of keys as a JSON list, since Haiku's
    keys contain slashes and dots.
  """
  leaves = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
    leaves[json.dumps(keys)] = leaf
  return leaves


def select(leaves: Leaves, *prefix: str) -> Leaves:
  """Returns the leaves whose paths begin with the given keys."""
  return {
      name: leaf for name, leaf in leaves.items()
      if json.loads(name)[:len(prefix)] == list(prefix)
  }


def below(leaves: Leaves, *prefix: str) -> Leaves:
  """Returns the leaves with the given keys prepended to their paths."""
  return {
      json.dumps([*prefix, *json.loads(name)]): leaf
      for name, leaf in leaves.items()
  }


def nest(leaves: Leaves, skip: int) -> base.ArrayTree:
  """Returns leaves as nested dicts, without the first `skip` keys of paths."""
  tree: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *parents, last = json.loads(name)[skip:]
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def check_same(rule: str, expected: Leaves, saved: Leaves,
               remedy: str) -> None:
  """Raises DataError unless two sets of leaves agree in name, shape and dtype.

  Args:
    rule: the beginning of the message: '<subject> must <rule>'.
    expected: arrays or shapes by name.
    saved: the shapes in a checkpoint by name.
    remedy: the message's last sentence, without the full stop.
  """
  differences = []
  for name in expected | saved:
    path = '/'.join(json.loads(name))
    if name not in saved:
      differences.append(f'no {path} {_describe(expected[name])}')
    elif name not in expected:
      differences.append(f'a surplus {path} {_describe(saved[name])}')
    elif _describe(expected[name]) != _describe(saved[name]):
      differences.append(f'{path} {_describe(saved[name])} instead of '
                         f'{_describe(expected[name])}')
  if differences:
    raise checks.DataError(
        f'{rule}; got {checks.abbreviate(differences, limit=3)}. {remedy}.')


def plain(leaf: Any) -> Any:
  """Returns an array as it is, or the shape and dtype of PRNG keys' data."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.eval_shape(jax.random.key_data, leaf)
  return leaf


def _describe(leaf):
  """Returns dtype and shape as text."""
  leaf = plain(leaf)
  return f'{leaf.dtype}{list(leaf.shape)}'
