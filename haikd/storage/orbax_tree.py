"""The weights of a network in a tree that Orbax has saved elsewhere.

`orbax:<folder>` is what `StandardCheckpointer` or `PyTreeCheckpointer` saved,
or the folder of a `CheckpointManager`, whose newest step is read.
`orbax:<folder>#<path>` is a part of the tree, with slashes between keys.

The leaf of a parameter has the path `module/name`. If the tree has the key
`params`, that part holds the parameters and `state` the state, as in a dict or
a NamedTuple of both; likewise the two elements of a tuple.
"""

from collections.abc import Iterator
import contextlib
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.storage import archive
from haikd.storage import orbax_arrays
from haikd.storage import paths

PREFIX = 'orbax:'  # Of an `init` that names such a folder.

_METADATA = '_METADATA'  # What Orbax writes beside a tree.
# The folder of a step, whose name a manager may begin with a prefix.
_STEP = re.compile(r'(?:.+_)?([0-9]+)')
_PARTS = (('params', 'state'), ('0', '1'))  # Of parameters and of state.


def exists(init: str) -> bool:
  """Returns whether the tree that an `init` names is there."""
  return bool(_folders(_split(init)[0]))


def is_folder(path: str) -> bool:
  """Returns whether a path, without the prefix, is a folder with one tree."""
  return _METADATA in paths.names(paths.absolute(path))


def check(field: str, init: str, expected: base.Variables) -> None:
  """Refuses a tree that is not of a network; arguments as for `load`."""
  _open(field, init, expected)


def load(field: str, init: str, expected: base.Variables) -> base.Variables:
  """Reads weights into a given network; other leaves are not read.

  Args:
    field: the config field that names the folder, for messages.
    init: 'orbax:', the folder, and perhaps '#' and a path in the tree.
    expected: the network's parameters and state as `jax.ShapeDtypeStruct`s with
      the dtypes and shardings to load them with.

  Returns:
    Parameters and state.

  Raises:
    DataError: the folder holds no tree, or one of another network; what is
      missing, surplus or of another shape is listed.
  """
  import orbax.checkpoint as ocp
  tree = _open(field, init, expected)
  wanted = {tree.sources[name]: leaf
            for name, leaf in archive.leaves_by_name(expected).items()}
  some = next(iter(wanted.values()))
  requested = [wanted.get(path, ocp.PLACEHOLDER) for path in tree.paths]
  # A leaf that is not read needs arguments, which are not used.
  arguments = [ocp.checkpoint_utils.construct_restore_args(
      wanted.get(path, some)) for path in tree.paths]
  unflatten = lambda each: jax.tree.unflatten(tree.structure, each)
  with _reading(field, init), ocp.PyTreeCheckpointer() as checkpointer:
    restored = checkpointer.restore(
        tree.folder, args=ocp.args.PyTreeRestore(
            item=unflatten(requested), restore_args=unflatten(arguments)))
  leaves = dict(zip(tree.paths, jax.tree.leaves(restored)))
  return jax.tree.unflatten(
      jax.tree.structure(expected), [leaves[path] for path in wanted])


class _Tree(NamedTuple):
  """A tree whose leaves fit a network.

  Attributes:
    folder: where it is.
    structure: of the full tree.
    paths: of all its leaves, in order.
    sources: `{name of an expected leaf: path of its leaf}`.
  """

  folder: paths.ConcretePath
  structure: Any
  paths: list[str]
  sources: dict[str, str]


def _open(field: str, init: str, expected: base.Variables) -> _Tree:
  """Finds the leaves of a network in a tree, without reading their values."""
  import orbax.checkpoint as ocp
  location, part = _split(init)
  folders = _folders(location)
  if len(folders) != 1:
    several = [folder.name for folder in folders]
    raise checks.DataError(
        f'{field} must name a folder that Orbax has saved a tree in; got '
        f'{init!r}, which has {checks.abbreviate(several) or "none"}. Give the '
        "folder of the tree itself, with its file '_METADATA'.")
  with _reading(field, init), ocp.PyTreeCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(folders[0]).item_metadata.tree
  flat, structure = jax.tree_util.tree_flatten_with_path(
      metadata, is_leaf=lambda x: hasattr(x, 'shape'))
  leaves = {jax.tree_util.keystr(path, simple=True, separator='/'):
            jax.ShapeDtypeStruct(getattr(leaf, 'shape', ()),
                                 getattr(leaf, 'dtype', None) or np.float32)
            for path, leaf in flat}
  sources = _choose(field, init, part, list(leaves))
  archive.check_same(
      field, expected, {name: leaves[path] for name, path in sources.items()},
      'Choose the model and the options that they were trained with, or name '
      f'a part of the tree, as in {PREFIX}<folder>#<path>')
  return _Tree(folders[0], structure, list(leaves), sources)


def _choose(field, init, part, known) -> dict[str, str]:
  """Returns `{name in an archive: path of the leaf}` of a tree's weights."""
  start = f'{part}/' if part else ''
  below = [path.removeprefix(start) for path in known if path.startswith(start)]
  tops = {path.partition('/')[0] for path in below}
  if not tops:
    keys = {path.rpartition('/')[0] for path in known}
    raise checks.DataError(
        f'{field} must name a part of the tree; got {part!r} in {init!r}. '
        f'{checks.suggest(part, keys)}')
  for params, state in _PARTS:
    if params in tops and (params != '0' or tops <= {params, state}):
      others = sorted(tops - {params, state})
      if others:
        notes.say(f'{field}: {params} and {state} are read, and not '
                  f'{checks.abbreviate(others)}.')
      prefixes = {f'{params}/': '', f'{state}/': archive.STATE}
      break
  else:
    prefixes = {'': ''}
  return {new + path.removeprefix(old): start + path
          for old, new in prefixes.items()
          for path in below if path.startswith(old)}


def _split(init):
  """Returns the folder, and the path in the tree or ''."""
  location, _, part = init.removeprefix(PREFIX).partition('#')
  return os.path.expanduser(location), part.strip('/')


def _folders(location: str) -> list[paths.ConcretePath]:
  """Returns the folders of trees: that given, or those in its newest step."""
  folder = paths.absolute(location)
  names = paths.names(folder)
  if _METADATA in names:
    return [folder]
  steps = {int(match[1]): name for name in names
           if (match := _STEP.fullmatch(name))}
  if steps:
    folder = folder / steps[max(steps)]
  return [folder / name for name in sorted(paths.names(folder))
          if _METADATA in paths.names(folder / name)]


@contextlib.contextmanager
def _reading(field: str, init: str) -> Iterator[None]:
  """Turns any error of Orbax inside into a DataError."""
  with orbax_arrays.quiet():
    try:
      yield
    except Exception as err:  # Orbax and TensorStore raise many kinds.
      raise checks.DataError(
          f'{field} must name a complete tree of Orbax; got {init!r} '
          f'({checks.describe(err)}). Save it again with '
          'ocp.StandardCheckpointer.') from err
