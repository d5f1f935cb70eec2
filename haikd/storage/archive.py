"""The weights of a network in one file: a NumPy archive, `.npz`.

A parameter `w` of the module `mlp/linear` is the array `mlp/linear/w`, and a
state `average` of the module `norm/mean` is `state:norm/mean/average`.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
import pathlib
from typing import Any, Optional
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.storage import files
from haikd.storage import leaves as leaves_lib
from haikd.storage import paths
from haikd.storage import regular

PREFIX = 'npz:'  # Of an `init` that names an archive.
STATE = 'state:'


def exists(init: str) -> bool:
  """Returns whether the archive that an `init` names is there."""
  return os.path.isfile(_path(init))


def save_network(path: files.Path, params: base.ArrayTree,
                 state: Optional[base.ArrayTree] = None) -> None:
  """Writes the weights of a network as a NumPy archive.

  `config.teacher.init = 'npz:<path>'`, or that of the student, reads it.

  Args:
    path: the file to write; a name that does not end in `.npz` gets that end.
    params: Haiku parameters, `{module: {name: array}}`.
    state: Haiku state, likewise; None for none.

  Raises:
    ValueError: a tree of another form, or a path in a bucket.
  """
  columns = named(params, state)
  if paths.is_remote(path):
    raise ValueError(f'path must be local; got {path}. Write it here, and copy '
                     'the file.')
  path = pathlib.Path(path)
  if path.suffix != '.npz':
    path = path.with_name(f'{path.name}.npz')
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.part')
  with open(partial, 'wb') as file:
    np.savez(file, allow_pickle=False, **columns)
  os.replace(partial, path)


def named(params: base.ArrayTree,
          state: Optional[base.ArrayTree] = None) -> dict[str, np.ndarray]:
  """Returns the arrays of a network by their names in an archive.

  Args:
    params: as for `save_network`.
    state: as for `save_network`.

  Raises:
    ValueError: a tree of another form.
  """
  return {**_named(params, 'params', ''),
          **_named(state or {}, 'state', STATE)}


def unnamed(arrays: Mapping[str, Any]) -> base.Variables:
  """Returns parameters and state, given what `named` returns."""
  trees = base.Variables({}, {})
  for name, array in arrays.items():
    tree = trees.state if name.startswith(STATE) else trees.params
    module, _, last = name.removeprefix(STATE).rpartition('/')
    tree.setdefault(module, {})[last] = array
  return trees


def check(field: str, init: str, expected: base.Variables) -> None:
  """Refuses an archive that is not of a network.

  Args:
    field: as for `load`.
    init: as for `load`.
    expected: as for `load`.

  Raises:
    DataError: as `load`.
  """
  with _opened(field, init) as archive:
    _check_same(field, archive, expected)


def load(field: str, init: str, expected: base.Variables) -> base.Variables:
  """Reads weights into a given network.

  Args:
    field: the config field that names the archive, for messages.
    init: 'npz:' and the path.
    expected: the network's parameters and state as `jax.ShapeDtypeStruct`s with
      the dtypes and shardings to load them with.

  Returns:
    Parameters and state.

  Raises:
    DataError: the archive is missing or damaged, or is of another network; what
      is missing, surplus or of another shape is listed.
  """
  with _opened(field, init) as archive:
    _check_same(field, archive, expected)
    arrays = [
        jax.device_put(archive[name].astype(leaf.dtype),
                       leaf.sharding)
        for name, leaf in leaves_by_name(expected).items()]
  return jax.tree.unflatten(jax.tree.structure(expected), arrays)


def _named(tree: Any, title: str, prefix: str) -> dict[str, np.ndarray]:
  """Returns the arrays of Haiku's two levels by their names in an archive."""
  columns = {}
  for module, variables in tree.items():
    if not hasattr(variables, 'items'):
      raise ValueError(
          f'{title} must be {{module: {{name: array}}}}, as Haiku has it; got '
          f'{type(variables).__name__} under {module!r}. Name a module above '
          'the arrays.')
    for name, value in variables.items():
      array = np.asarray(value)
      if array.dtype.kind not in 'biufc':  # NumPy's format has no bfloat16.
        array = array.astype(np.float32)
      columns[f'{prefix}{module}/{name}'] = array
  return columns


def leaves_by_name(expected: base.Variables) -> dict[str, Any]:
  """Returns the leaves by their names in an archive, in the tree's order."""
  leaves = {}
  for prefix, tree in (('', expected.params), (STATE, expected.state)):
    for key, leaf in leaves_lib.flatten(tree).items():
      leaves[prefix + '/'.join(json.loads(key))] = leaf
  return leaves


def _path(init):
  return os.path.expanduser(init.removeprefix(PREFIX))


@contextlib.contextmanager
def opened(path: files.Path, rule: str, remedy: str) -> Iterator[Any]:
  """Opens an archive; what goes wrong inside becomes a DataError.

  Args:
    path: the file.
    rule: '<subject> must be an archive of <what>', the beginning of a message.
    remedy: its last sentence, without the full stop.

  Yields:
    The archive, as `numpy.load` returns it.
  """
  try:
    regular.check(path)
    if not zipfile.is_zipfile(path):
      raise ValueError('it is no archive')
    with np.load(path, allow_pickle=False) as archive:
      yield archive
  except (checks.ConfigError, checks.DataError):
    raise
  except Exception as err:  # A broken archive causes errors of any kind.
    raise checks.DataError(f'{rule}, without pickles; got {str(path)!r} '
                           f'({checks.one_line(err)}). {remedy}.') from err


def _opened(field: str, init: str) -> Any:
  """Opens an archive of weights; errors of reading it name the field."""
  if not exists(init):
    raise checks.DataError(
        f'{field} must name a file that haikd.save_network has written; got '
        f'{init!r}, which is no file.')
  return opened(_path(init), f'{field} must be an archive of numbers',
                'Write it with haikd.save_network')


def _check_same(field, archive, expected):
  """Raises DataError for names or shapes that differ, whatever the dtypes."""
  saved = {}
  for name in archive.files:
    shape, dtype = header(archive, name)
    if dtype.hasobject:
      raise ValueError(f'{name} holds objects')
    saved[name] = jax.ShapeDtypeStruct(shape, dtype)
  check_same(field, expected, saved,
             'Choose the model and the options that they were trained with')


def check_same(field: str, expected: base.Variables, saved: Mapping[str, Any],
               remedy: str) -> None:
  """Raises DataError unless weights are those of a network.

  Floating-point numbers of any size fit one another, and so do integers.

  Args:
    field: the config field that names the weights, for messages.
    expected: the network's parameters and state.
    saved: shapes and dtypes of the weights by their names in an archive.
    remedy: the message's last sentence, without the full stop.
  """
  keyed = lambda each: {
      json.dumps([name]): jax.ShapeDtypeStruct(leaf.shape, np.float32)
      for name, leaf in each.items()}
  wanted = leaves_by_name(expected)
  leaves_lib.check_same(f'{field} must hold the parameters of this network',
                        keyed(wanted), keyed(saved), remedy)
  for name, leaf in wanted.items():
    if not _fits(np.dtype(saved[name].dtype), leaf.dtype):
      raise checks.DataError(
          f'{field} must hold {name} as {leaf.dtype}, or such numbers of '
          f'another size; got {saved[name].dtype}. Save the weights as they '
          'are in training, and not quantised.')


def _fits(saved, expected):
  kinds = (jnp.floating, jnp.integer, jnp.bool_)
  return any(jnp.issubdtype(saved, kind) and jnp.issubdtype(expected, kind)
             for kind in kinds)


def header(archive: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
  """Returns the shape and dtype of an array, without reading its values.

  Args:
    archive: from `opened`.
    name: of the array.

  Raises:
    Exception: of any kind; the archive is damaged, or the name is not that of
      an array.
  """
  with archive.zip.open(f'{name}.npy') as file:
    version = np.lib.format.read_magic(file)
    read = (np.lib.format.read_array_header_1_0 if version == (1, 0) else
            np.lib.format.read_array_header_2_0)
    shape, _, dtype = read(file)
  return shape, dtype
