"""A checkpoint on disk: leaves by name, their shapes, and how to read them."""

import contextlib
import json
import logging
import pathlib
from typing import Any, Optional
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

from haikd.core import base
from haikd.core import checks
from haikd.storage import paths

STATE, METADATA = 'state', 'metadata'  # The items of a checkpoint.
_COMMITTED = 'commit_success.txt'  # What Orbax writes last.

_SHOWN = 3  # Of the differences between two trees.

Leaves = dict[str, Any]


def flatten(tree: base.ArrayTree) -> Leaves:
  """Returns the leaves of a tree by name, in the tree's order.

  Args:
    tree: any pytree; nodes without leaves, such as None, leave no trace.

  Returns:
    `{name: leaf}`; a name is the JSON list of the keys on the way, since keys
    of Haiku have slashes and dots in them.
  """
  leaves = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
    leaves[json.dumps(keys)] = leaf
  return leaves


def select(leaves: Leaves, *prefix: str) -> Leaves:
  """Returns the leaves whose names begin with these keys."""
  return {
      name: leaf for name, leaf in leaves.items()
      if json.loads(name)[:len(prefix)] == list(prefix)
  }


def below(leaves: Leaves, *prefix: str) -> Leaves:
  """Returns leaves with these keys before those of their names."""
  return {
      json.dumps([*prefix, *json.loads(name)]): leaf
      for name, leaf in leaves.items()
  }


def nest(leaves: Leaves, skip: int) -> base.ArrayTree:
  """Returns leaves as nested dicts, leaving out the first keys of names."""
  tree = {}
  for name, leaf in leaves.items():
    *way, last = json.loads(name)[skip:]
    node = tree
    for key in way:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def find(folder: pathlib.PurePath) -> Optional[pathlib.PurePath]:
  """Returns the newest complete checkpoint of a folder, or that it is itself.

  Args:
    folder: with checkpoints in it, named by their steps, or one of them.

  Returns:
    The folder of a checkpoint, or None.

  Raises:
    DataError: it is in a bucket that cannot be reached.
  """
  if folder.name.isdigit() and _is_complete(folder):
    return folder
  steps = [name for name in paths.names(folder) if name.isdigit()]
  newest_first = sorted(steps, key=int, reverse=True)
  folders = (folder / name for name in newest_first)
  return next(filter(_is_complete, folders), None)


def read_shapes(where: str, folder: pathlib.PurePath) -> Leaves:
  """Returns the `jax.ShapeDtypeStruct`s of a checkpoint's leaves by name."""
  with _reading(where, folder), ocp.PyTreeCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(folder / STATE).item_metadata
    if metadata is None:
      raise FileNotFoundError('its arrays cannot be found')
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in metadata.tree.items()
    }


def read_leaves(where: str,
                folder: pathlib.PurePath,
                wanted: Leaves,
                *,
                as_numpy: bool = False) -> Leaves:
  """Reads some leaves of a checkpoint and no others.

  Args:
    where: the function to name in errors.
    folder: of the checkpoint.
    wanted: `jax.ShapeDtypeStruct`s by name, with the shardings to give them.
    as_numpy: whether to return NumPy arrays instead.

  Returns:
    `{name: array}`.

  Raises:
    DataError: the checkpoint cannot be read.
  """
  if as_numpy:
    how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
  else:
    how = ocp.checkpoint_utils.construct_restore_args(wanted)
  with _reading(where, folder), ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(
        folder / STATE,
        args=ocp.args.PyTreeRestore(
            item=wanted, restore_args=how, partial_restore=True))


def read_extra(where: str, folder: pathlib.PurePath) -> dict[str, Any]:
  """Returns what was saved beside the leaves: `iterator` and `metadata`."""
  handler = ocp.JsonCheckpointHandler()
  with _reading(where, folder), ocp.Checkpointer(handler) as checkpointer:
    extra = checkpointer.restore(folder / METADATA, args=ocp.args.JsonRestore())
    return {name: extra[name] for name in ('iterator', 'metadata')}


def check_same(where: str, rule: str, expected: Leaves, found: Leaves,
               remedy: str) -> None:
  """Raises DataError unless two sets of leaves agree in name, shape and dtype.

  Args:
    where: the function to name.
    rule: what must be, beginning with a subject.
    expected: arrays or shapes by name.
    found: likewise.
    remedy: what to do, without the full stop.
  """
  differ = []
  for name in expected | found:
    title = '/'.join(json.loads(name))
    if name not in found:
      differ.append(f'no {title} {_form(expected[name])}')
    elif name not in expected:
      differ.append(f'a surplus {title} {_form(found[name])}')
    elif _form(expected[name]) != _form(found[name]):
      differ.append(f'{title} {_form(found[name])} instead of '
                    f'{_form(expected[name])}')
  if differ:
    raise checks.DataError(f'{where}: {rule}; got {first(differ)}. {remedy}.')


def plain(leaf: Any) -> Any:
  """Returns an array, or of PRNG keys the shape and dtype of their data."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.eval_shape(jax.random.key_data, leaf)
  return leaf


def first(parts: list[str]) -> str:
  """Returns the first parts of a list, and how many more there are."""
  more = len(parts) - _SHOWN
  return ', '.join(parts[:_SHOWN]) + (f' and {more} more' if more > 0 else '')


def _is_complete(folder):
  """Returns whether all of a checkpoint is there, in the folder of a step.

  On disk the folder gets its name when it is complete; in a bucket, where
  nothing can be renamed, it gets one more object.
  """
  found = paths.names(folder)
  return STATE in found and (not paths.is_remote(folder) or _COMMITTED in found)


@contextlib.contextmanager
def writing(where: str, folder: pathlib.PurePath):
  """Makes an error inside a DataError that says what cannot be written."""
  with _quiet():
    try:
      yield
    except Exception as err:  # Orbax has many, TensorStore others.
      raise checks.DataError(
          f'{where}: workdir must be a folder to write to; got {folder} '
          f'({checks.one_line(err)}). Make room, or choose another '
          '--workdir.') from err


@contextlib.contextmanager
def _reading(where, folder):
  with _quiet():
    try:
      yield
    except Exception as err:  # Likewise.
      raise checks.DataError(
          f'{where}: checkpoint must be whole; got {folder} '
          f'({checks.one_line(err)}). Remove that folder to go on from an '
          'earlier one.') from err


@contextlib.contextmanager
def _quiet():
  """Keeps from the user what Orbax tells its developers, also from threads."""
  logging.getLogger('absl').addFilter(_is_not_orbax)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def _is_not_orbax(record):
  return 'orbax' not in pathlib.PurePath(record.pathname).parts


def _form(leaf):
  """Returns dtype and shape as text."""
  leaf = plain(leaf)
  return f'{leaf.dtype}{list(leaf.shape)}'
