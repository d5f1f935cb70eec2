"""The leaves of a checkpoint by name: how to find, read and compare them."""

import contextlib
import itertools
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
from haikd.core import notes
from haikd.storage import checksums
from haikd.storage import extra as extra_lib
from haikd.storage import files
from haikd.storage import paths

STATE, METADATA = 'state', 'metadata'  # The items of a checkpoint.
_AMENDED = 'amended.json'  # What counts in place of the item METADATA.
_COMMITTED = 'commit_success.txt'  # What Orbax writes last.

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


def find(folder: paths.ConcretePath) -> Optional[paths.ConcretePath]:
  """Returns the newest complete checkpoint.

  Args:
    folder: a folder of checkpoints that are named by their steps, or one
      checkpoint.

  Returns:
    The folder of the checkpoint, or None. A damaged one is left out, which is
    said.

  Raises:
    DataError: the folder is in a bucket that cannot be reached.
  """
  if folder.name.isdigit() and _is_complete(folder):
    return folder if _is_whole(folder) else None
  return next(filter(_is_whole, _complete(folder)), None)


def damaged(folder: paths.ConcretePath) -> list[paths.ConcretePath]:
  """Returns the checkpoints that are newer than `find` returns, newest first.

  Those before that one are not read.
  """
  return list(itertools.takewhile(checksums.problem, _complete(folder)))


def read_shapes(folder: paths.ConcretePath) -> Leaves:
  """Returns the `jax.ShapeDtypeStruct`s of a checkpoint's leaves by name."""
  with _reading(folder), ocp.PyTreeCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(folder / STATE).item_metadata
    if metadata is None:
      raise FileNotFoundError('its arrays cannot be found')
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in metadata.tree.items()
    }


def read_leaves(folder: paths.ConcretePath,
                requested: Leaves,
                *,
                as_numpy: bool = False) -> Leaves:
  """Reads the requested leaves of a checkpoint and no others.

  Args:
    folder: the folder of the checkpoint.
    requested: `jax.ShapeDtypeStruct`s by name. Each array is returned with the
      dtype and sharding requested here.
    as_numpy: whether to return NumPy arrays with the dtypes that were saved,
      ignoring those requested.

  Returns:
    `{name: array}`.

  Raises:
    DataError: the checkpoint cannot be read.
  """
  if as_numpy:
    restore_args = {
        name: ocp.RestoreArgs(restore_type=np.ndarray) for name in requested}
  else:
    restore_args = ocp.checkpoint_utils.construct_restore_args(requested)
  with _reading(folder), ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(
        folder / STATE,
        args=ocp.args.PyTreeRestore(
            item=requested, restore_args=restore_args, partial_restore=True))


def read_extra(folder: paths.ConcretePath) -> dict[str, Any]:
  """Returns what was saved beside the leaves, or amended since.

  Returns:
    `iterator`, `metadata` and `best_step`, which may be None.

  Raises:
    DataError: it cannot be read, or it has values of other types.
  """
  handler = ocp.JsonCheckpointHandler()
  with _reading(folder), ocp.Checkpointer(handler) as checkpointer:
    if _AMENDED in paths.names(folder):
      extra = files.read_json(folder / _AMENDED)
    else:
      extra = checkpointer.restore(
          folder / METADATA, args=ocp.args.JsonRestore())
  return extra_lib.check(folder, extra)


def amend_extra(folder: paths.ConcretePath, extra: Any) -> None:
  """Writes anew what was saved beside the leaves, which stay as they are.

  It is one file more, which appears complete. A kill at any moment therefore
  leaves the checkpoint with the old content or with the new one.

  Args:
    folder: of a complete checkpoint.
    extra: as `read_extra` returns it; JSON must be able to hold it.
  """
  files.write_json(folder / _AMENDED, extra)
  if not paths.is_remote(folder):
    checksums.add(pathlib.Path(folder), _AMENDED)


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


def is_ours(folder: paths.ConcretePath) -> bool:
  """Returns whether a run has written what is in a step's folder.

  That one of its files is gone does not make it another's.
  """
  items = paths.names(folder)
  return checksums.FILE in items or {STATE, METADATA} <= set(items)


def _is_complete(folder):
  """Returns whether the checkpoint in a step's folder is complete.

  On disk, the folder gets its name when it is complete. A bucket cannot rename
  anything; there, one more object says that the checkpoint is complete.
  """
  return is_ours(folder) and (
      not paths.is_remote(folder) or _COMMITTED in paths.names(folder))


def _complete(folder):
  """Yields the complete checkpoints of a folder, the newest first."""
  steps = [name for name in paths.names(folder) if name.isdigit()]
  for name in sorted(steps, key=int, reverse=True):
    if _is_complete(folder / name):
      yield folder / name


def _is_whole(folder):
  """Returns whether no file of a checkpoint is damaged; says one that is."""
  problem = checksums.problem(folder)
  if problem:
    notes.say(f'{folder} is left out, since it is damaged: {problem}.')
  return not problem


@contextlib.contextmanager
def writing(folder: paths.Path):
  """Turns any error inside into a DataError that names the folder."""
  with quiet():
    try:
      yield
    except checks.DataError:
      raise
    except Exception as err:  # Orbax and TensorStore raise many kinds.
      raise paths.unwritable(folder, err) from err


@contextlib.contextmanager
def _reading(folder):
  with quiet():
    try:
      yield
    except Exception as err:  # As in `writing`.
      raise checks.DataError(
          f'checkpoint must be complete; got {folder} '
          f'({checks.describe(err)}). Remove that folder to go on from an '
          'earlier checkpoint.') from err


@contextlib.contextmanager
def quiet():
  """Hides Orbax's messages to its developers, also those from its threads."""
  logging.getLogger('absl').addFilter(_is_not_orbax)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def _is_not_orbax(record):
  return 'orbax' not in pathlib.PurePath(record.pathname).parts


def _describe(leaf):
  """Returns dtype and shape as text."""
  leaf = plain(leaf)
  return f'{leaf.dtype}{list(leaf.shape)}'
