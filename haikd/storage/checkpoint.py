"""Reads checkpoints: the network of a run, and what was saved with it.

A checkpoint holds the leaves of a `TrainState` by name, so that it can be read
in part, on any number of devices, and by a run that has another optimizer. Its
folder is `<workdir>/checkpoints/<step>`; `step_folder` says what that holds.
"""

from collections.abc import Mapping
from typing import Any, Optional

import jax
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.processes import distributed
from haikd.storage import files
from haikd.storage import leaves as leaves_lib
from haikd.storage import paths
from haikd.storage import step_folder

FOLDER = 'checkpoints'


def has_checkpoint(path: files.Path) -> bool:
  """Returns whether a path, as for `load_network`, holds a checkpoint."""
  return newest(path) is not None


def metadata(path: files.Path, *, field: str = 'path') -> dict[str, Any]:
  """Returns the metadata of the newest checkpoint.

  Args:
    path: as for `load_network`.
    field: the config field or flag that names the path, for messages.

  Returns:
    What was given to `Checkpointer.save`. For a run of haikd: `teacher`, a hash
    of the teacher; `vocabulary`, the identity of the tokenizer; `seconds`, the
    training time over all restarts; and `config`.

  Raises:
    DataError: the path holds no checkpoint, or it cannot be read.
  """
  return step_folder.read_extra(_newest(field, path))['metadata']


def load_network(path: files.Path,
                 *,
                 ema: bool = True) -> tuple[base.ArrayTree, base.ArrayTree]:
  """Reads a trained student without its optimizer.

  Args:
    path: a workdir or its folder of checkpoints, for the best of them, which
      is the newest unless `config.evaluation.keep_best` is set; or one
      checkpoint.
    ema: whether to read the running mean of the parameters, if one was kept.

  Returns:
    Haiku parameters and Haiku state, as NumPy arrays; PRNG keys in the state as
    their data.

  Raises:
    DataError: the path holds no checkpoint, or it cannot be read.
  """
  folder = _best('path', path)
  shapes = step_folder.read_shapes(folder)
  mean = leaves_lib.select(shapes, 'ema') if ema else {}
  params = mean or leaves_lib.select(shapes, 'params', 'student')
  state = leaves_lib.select(shapes, 'net_state')
  leaves = step_folder.read_leaves(folder, {**params, **state}, as_numpy=True)
  skip = 1 if mean else 2
  return (leaves_lib.nest({name: leaves[name] for name in params}, skip),
          leaves_lib.nest({name: leaves[name] for name in state}, 1))


def load_like(field: str, path: files.Path,
              expected: base.Variables) -> base.Variables:
  """Reads a trained student into a given network.

  Each process reads only the shards of its own devices.

  Args:
    field: the config field or flag that names the path, for messages.
    path: as for `load_network`.
    expected: the network's parameters and state as `jax.ShapeDtypeStruct`s with
      the dtypes and shardings to load them with.

  Returns:
    Parameters (their running mean, if one was kept) and state.

  Raises:
    DataError: the path holds no checkpoint, it cannot be read, or it belongs to
      another network.
  """
  folder = _best(field, path)
  shapes = step_folder.read_shapes(folder)
  mean = leaves_lib.select(shapes, 'ema')
  params_prefix = ('ema',) if mean else ('params', 'student')
  requested = {
      **leaves_lib.below(leaves_lib.flatten(expected.params), *params_prefix),
      **leaves_lib.below(leaves_lib.flatten(expected.state), 'net_state')
  }
  saved = {**leaves_lib.select(shapes, *params_prefix),
           **leaves_lib.select(shapes, 'net_state')}
  ignore_dtypes = lambda leaves: {
      name: jax.ShapeDtypeStruct(leaves_lib.plain(leaf).shape, np.float32)
      for name, leaf in leaves.items()
  }
  leaves_lib.check_same(
      f'{field} must hold the parameters of this network',
      ignore_dtypes(requested), ignore_dtypes(saved),
      'Choose the model and the options that they were trained with')
  leaves = step_folder.read_leaves(folder, requested)
  return jax.tree.unflatten(
      jax.tree.structure(expected), [leaves[name] for name in requested])


def newest(folder: files.Path) -> Optional[paths.ConcretePath]:
  """Returns the newest checkpoint, the same on all processes, or None.

  Args:
    folder: a workdir, its folder of checkpoints, or one checkpoint.
  """
  path = paths.absolute(folder)

  def search():
    found = step_folder.find(path / FOLDER) or step_folder.find(path)
    return found and str(found)

  found = distributed.first(search)
  return found and paths.as_path(found)


def steps_taken(path: files.Path) -> int:
  """Returns the step of the newest checkpoint of a workdir; 0 for none."""
  folder = newest(path)
  return int(folder.name) if folder else 0


def step_used(path: files.Path) -> int:
  """Returns the step of the network that `load_network` reads: the best.

  Call it on all processes.

  Args:
    path: a workdir.

  Raises:
    DataError: the path holds no checkpoint, or it cannot be read.
  """
  return int(_best('path', path).name)


def check_teacher(saved: Mapping[str, Any], identity: str) -> None:
  """Refuses a student that was trained with another teacher.

  Args:
    saved: the metadata of the student's checkpoint.
    identity: the hash of the present teacher; '' for none.

  Raises:
    DataError: the hashes differ.
  """
  if saved['teacher'] != identity:
    raise checks.DataError(
        'teacher must be the one that training began with; got '
        f'{identity[:12] or "none"}, and the checkpoint has '
        f'{saved["teacher"][:12] or "none"}. Choose another --workdir, or '
        'bring back the old teacher.')


def check_vocabulary(saved: Mapping[str, Any], identity: str) -> None:
  """Refuses a network that was trained with another vocabulary.

  Args:
    saved: the metadata of the network's checkpoint.
    identity: the identity of the data's tokenizer, pruned or not; '' for none.

  Raises:
    DataError: the identities differ.
  """
  if saved['vocabulary'] != identity:
    raise checks.DataError(
        "the data's tokenizer must be the one that training began with; got "
        f'{identity or "none"}, and the checkpoint has '
        f'{saved["vocabulary"] or "none"}. Bring back that tokenizer and, if '
        'config.data.options.prune is set, the texts of the split train; or '
        'choose another --workdir.')


def _newest(field, path):
  folder = newest(path)
  if folder is None:
    raise checks.DataError(
        f'{field} must hold a checkpoint; got {str(path)!r}, which has none. '
        'Give the workdir of a run that has saved one; weights from elsewhere '
        'begin with npz:, orbax:, hf: or gguf:.')
  return folder


def _best(field, path):
  """Returns the checkpoint whose network is the one to use."""
  folder = _newest(field, path)
  if folder == paths.absolute(path):
    return folder  # One checkpoint was asked for.
  step = step_folder.read_extra(folder)['best_step']
  if step is None or str(step) == folder.name:
    return folder
  best = newest(folder.parent / str(step))
  if best is None:
    notes.say(f'{folder} is used, the newest checkpoint, since that of step '
              f'{step}, the best, is gone.')
  return best or folder
