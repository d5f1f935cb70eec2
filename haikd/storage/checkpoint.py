"""Saves and restores checkpoints.

A checkpoint holds the leaves of a `TrainState` by name, so that it can be read
in part, on any number of devices, and by a run that has another optimizer. On
disk it is written to a temporary folder, which is renamed to
`<workdir>/checkpoints/<step>` when it is complete. In a bucket it is written to
that path directly, and is complete once it has its `commit_success.txt`.
"""

from collections.abc import Mapping
from typing import Any, Optional

import jax
import numpy as np
import orbax.checkpoint as ocp

import haikd
from haikd.core import base
from haikd.core import checks
from haikd.processes import distributed
from haikd.storage import files
from haikd.storage import leaves as leaves_lib
from haikd.storage import paths

FOLDER = 'checkpoints'


class Checkpointer:
  """Saves and restores a run; use it in a `with` statement.

  Args:
    workdir: a folder that all processes see, created if missing. Unfinished
      checkpoints of a killed run are removed.
    keep: how many of the newest checkpoints to keep.
  """

  def __init__(self, workdir: files.Path, *, keep: int):
    self._folder = paths.absolute(workdir) / FOLDER
    with leaves_lib.writing(self._folder):
      self._manager = ocp.CheckpointManager(
          self._folder,
          options=ocp.CheckpointManagerOptions(
              max_to_keep=keep, cleanup_tmp_directories=True))

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, kind, *unused) -> None:
    # Closing waits for all processes, and after an error some may never come.
    if kind is None or not distributed.is_many():
      self.close()

  def save(self, step: int, state: base.TrainState,
           iterator_state: Mapping[str, Any],
           metadata: Mapping[str, Any]) -> None:
    """Starts to save; returns when the state has been copied.

    The state may be donated right after. Call it on all processes.

    Args:
      step: the number of steps taken.
      state: the training state.
      iterator_state: the position in the data, in values that JSON can hold;
        the same on all processes.
      metadata: further values that JSON can hold, the same on all processes.

    Raises:
      DataError: this or the previous checkpoint cannot be written.
    """
    extra = dict(
        iterator=iterator_state,
        metadata=metadata,
        haikd_version=haikd.__version__)
    with leaves_lib.writing(self._folder):
      self._manager.save(
          step,
          args=ocp.args.Composite(
              state=ocp.args.PyTreeSave(leaves_lib.flatten(state)),
              metadata=ocp.args.JsonSave(files.to_json(extra))))

  def restore(
      self, abstract_state: base.TrainState
  ) -> Optional[tuple[base.TrainState, Any, dict[str, Any]]]:
    """Returns the content of the newest checkpoint.

    Args:
      abstract_state: the state as `jax.ShapeDtypeStruct`s with the shardings
        to restore to, which may differ from those it was saved with.

    Returns:
      State, state of the iterator and metadata; None if nothing is saved.

    Raises:
      DataError: the checkpoint belongs to another network or optimizer, or it
        cannot be read.
    """
    folder = _agree(lambda: leaves_lib.find(self._folder))
    if folder is None:
      return None
    expected = leaves_lib.flatten(abstract_state)
    leaves_lib.check_same(
        f'{folder} must hold the state of this run', expected,
        leaves_lib.read_shapes(folder),
        'Choose another --workdir, or go back to the config that it was '
        'trained with')
    leaves = leaves_lib.read_leaves(folder, expected)
    extra = leaves_lib.read_extra(folder)
    state = jax.tree.unflatten(
        jax.tree.structure(abstract_state), [leaves[name] for name in expected])
    return state, extra['iterator'], extra['metadata']

  def latest_step(self) -> Optional[int]:
    """Returns the step of the newest complete checkpoint, or None."""
    folder = leaves_lib.find(self._folder)
    return None if folder is None else int(folder.name)

  def wait(self) -> None:
    """Returns when all that was saved is complete on disk."""
    with leaves_lib.writing(self._folder):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits until all is saved, then frees the resources for saving."""
    with leaves_lib.writing(self._folder):
      self._manager.close()


def has_checkpoint(path: files.Path) -> bool:
  """Returns whether a path, as for `load_network`, holds a checkpoint."""
  return _find(path) is not None


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
  return leaves_lib.read_extra(_newest(field, path))['metadata']


def load_network(path: files.Path,
                 *,
                 ema: bool = True) -> tuple[base.ArrayTree, base.ArrayTree]:
  """Reads a trained student without its optimizer.

  Args:
    path: a workdir, its folder of checkpoints, or one checkpoint.
    ema: whether to read the running mean of the parameters, if one was kept.

  Returns:
    Haiku parameters and Haiku state of the newest checkpoint, as NumPy arrays;
    PRNG keys in the state as their data.

  Raises:
    DataError: the path holds no checkpoint, or it cannot be read.
  """
  folder = _newest('path', path)
  shapes = leaves_lib.read_shapes(folder)
  mean = leaves_lib.select(shapes, 'ema') if ema else {}
  params = mean or leaves_lib.select(shapes, 'params', 'student')
  state = leaves_lib.select(shapes, 'net_state')
  leaves = leaves_lib.read_leaves(folder, {**params, **state}, as_numpy=True)
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
  folder = _newest(field, path)
  shapes = leaves_lib.read_shapes(folder)
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
  leaves = leaves_lib.read_leaves(folder, requested)
  return jax.tree.unflatten(
      jax.tree.structure(expected), [leaves[name] for name in requested])


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


def _find(path):
  path = paths.absolute(path)
  return _agree(lambda: leaves_lib.find(path / FOLDER) or leaves_lib.find(path))


def _agree(find):
  """Returns the folder that `find` returns on process 0, or None."""

  def search():
    folder = find()
    return folder and str(folder)

  folder = distributed.first(search)
  return folder and paths.as_path(folder)


def _newest(field, path):
  folder = _find(path)
  if folder is None:
    raise checks.DataError(
        f'{field} must hold a checkpoint; got {str(path)!r}, which has none. '
        'Give the workdir of a run that has saved one; weights from elsewhere '
        'begin with npz:, orbax:, hf: or gguf:.')
  return folder
