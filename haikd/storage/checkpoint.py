"""What is saved, when it is safe, and how it comes back.

A checkpoint holds the leaves of a `TrainState` by name, so that it can be read
in part, on any number of devices, and by a run that has another optimizer. It
lies in `<workdir>/checkpoints/<step>` once it is complete, and before in a
temporary folder; in a bucket it lies there from the start, and is complete with
its `commit_success.txt`.
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
_RESTORE = 'checkpoint.Checkpointer.restore'
_SAVE = 'checkpoint.Checkpointer.save'


class Checkpointer:
  """Saves a run and brings it back; use it in a `with` statement.

  Args:
    workdir: a folder that all processes see, made if it is not there; what a
      killed run left unfinished in it is removed.
    keep: how many checkpoints to keep, the newest ones.
  """

  def __init__(self, workdir: files.Path, *, keep: int):
    self._folder = paths.absolute(workdir) / FOLDER
    with leaves_lib.writing(_SAVE, self._folder):
      self._manager = ocp.CheckpointManager(
          self._folder,
          options=ocp.CheckpointManagerOptions(
              max_to_keep=keep, cleanup_tmp_directories=True))

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, kind, *unused) -> None:
    # Closing waits for all processes; after an error not all may come.
    if kind is None or not distributed.is_many():
      self.close()

  def save(self, step: int, state: base.TrainState,
           iterator_state: Mapping[str, Any],
           metadata: Mapping[str, Any]) -> None:
    """Starts to save; returns when the state has been copied.

    The state may be donated right after. Call it on all processes.

    Args:
      step: the number of steps taken.
      state: what training changes.
      iterator_state: where in the data it stands, the same on all processes;
        something JSON can hold.
      metadata: whatever else belongs to it, likewise.

    Raises:
      DataError: this or the last checkpoint cannot be written.
    """
    extra = dict(
        iterator=iterator_state,
        metadata=metadata,
        haikd_version=haikd.__version__)
    with leaves_lib.writing(_SAVE, self._folder):
      self._manager.save(
          step,
          args=ocp.args.Composite(
              state=ocp.args.PyTreeSave(leaves_lib.flatten(state)),
              metadata=ocp.args.JsonSave(files.to_json(extra))))

  def restore(
      self, abstract_state: base.TrainState
  ) -> Optional[tuple[base.TrainState, Any, dict[str, Any]]]:
    """Returns what the newest checkpoint holds.

    Args:
      abstract_state: what the state looks like: `jax.ShapeDtypeStruct`s with
        the shardings that it is to have, whatever it was saved with.

    Returns:
      State, state of the iterator and metadata; None if nothing is saved.

    Raises:
      DataError: the checkpoint is of another network or optimizer, or it
        cannot be read.
    """
    folder = _agree(lambda: leaves_lib.find(self._folder))
    if folder is None:
      return None
    wanted = leaves_lib.flatten(abstract_state)
    leaves_lib.check_same(
        _RESTORE, f'{folder} must hold the state of this run', wanted,
        leaves_lib.read_shapes(_RESTORE, folder),
        'Choose another --workdir, or go back to the config that it was '
        'trained with')
    leaves = leaves_lib.read_leaves(_RESTORE, folder, wanted)
    extra = leaves_lib.read_extra(_RESTORE, folder)
    state = jax.tree.unflatten(
        jax.tree.structure(abstract_state), [leaves[name] for name in wanted])
    return state, extra['iterator'], extra['metadata']

  def latest_step(self) -> Optional[int]:
    """Returns the step of the newest complete checkpoint, or None."""
    folder = leaves_lib.find(self._folder)
    return folder and int(folder.name)

  def wait(self) -> None:
    """Returns when what was saved is complete on disk."""
    with leaves_lib.writing(_SAVE, self._folder):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and frees what saving needs."""
    with leaves_lib.writing(_SAVE, self._folder):
      self._manager.close()


def has_checkpoint(path: files.Path) -> bool:
  """Returns whether a path, as for `load_network`, holds a checkpoint."""
  return _find(path) is not None


def metadata(path: files.Path) -> dict[str, Any]:
  """Returns what was saved beside the network of a path.

  Args:
    path: as for `load_network`.

  Returns:
    Of a run of haikd `teacher`, a hash, `seconds`, how long it had been trained
    for over all restarts, and `config`.

  Raises:
    DataError: no checkpoint is there, or it cannot be read.
  """
  where = 'checkpoint.metadata'
  return leaves_lib.read_extra(where, _newest(where, path))['metadata']


def load_network(path: files.Path,
                 *,
                 ema: bool = True) -> tuple[base.ArrayTree, base.ArrayTree]:
  """Reads a trained student, and nothing of its optimizer.

  Args:
    path: a workdir, its folder of checkpoints, or one checkpoint.
    ema: whether to take the running mean of the parameters, if one was kept.

  Returns:
    Haiku parameters and Haiku state of the newest checkpoint, as NumPy arrays;
    PRNG keys in the state as their data.

  Raises:
    DataError: no checkpoint is there, or it cannot be read.
  """
  where = 'checkpoint.load_network'
  folder = _newest(where, path)
  shapes = leaves_lib.read_shapes(where, folder)
  mean = leaves_lib.select(shapes, 'ema') if ema else {}
  params = mean or leaves_lib.select(shapes, 'params', 'student')
  state = leaves_lib.select(shapes, 'net_state')
  leaves = leaves_lib.read_leaves(
      where, folder, {**params, **state}, as_numpy=True)
  skip = 1 if mean else 2
  return (leaves_lib.nest({name: leaves[name] for name in params}, skip),
          leaves_lib.nest({name: leaves[name] for name in state}, 1))


def load_like(field: str, path: files.Path,
              expected: base.Variables) -> base.Variables:
  """Reads a trained student that has to be a certain network.

  Each process reads the parts that its devices hold, and no others.

  Args:
    field: of the config that names it, for messages.
    path: as for `load_network`.
    expected: the network's parameters and state as `jax.ShapeDtypeStruct`s,
      with the dtypes and shardings that they are to have.

  Returns:
    Parameters (their running mean, if one was kept) and state.

  Raises:
    DataError: no checkpoint is there, it cannot be read, or it is of another
      network.
  """
  where = 'checkpoint.load_like'
  folder = _newest(where, path)
  shapes = leaves_lib.read_shapes(where, folder)
  mean = leaves_lib.select(shapes, 'ema')
  kept = ('ema',) if mean else ('params', 'student')
  wanted = {
      **leaves_lib.below(leaves_lib.flatten(expected.params), *kept),
      **leaves_lib.below(leaves_lib.flatten(expected.state), 'net_state')
  }
  plain = lambda leaves: {
      name: jax.ShapeDtypeStruct(leaves_lib.plain(leaf).shape, np.float32)
      for name, leaf in leaves.items()
  }
  found = {**leaves_lib.select(shapes, *kept),
           **leaves_lib.select(shapes, 'net_state')}
  leaves_lib.check_same(
      where, f'{field} must hold the parameters of this network', plain(wanted),
      plain(found), 'Choose the model and the options that they were trained '
      'with')
  leaves = leaves_lib.read_leaves(where, folder, wanted)
  return jax.tree.unflatten(
      jax.tree.structure(expected), [leaves[name] for name in wanted])


def check_teacher(where: str, saved: Mapping[str, Any], identity: str) -> None:
  """Refuses a student whose teacher was another.

  Args:
    where: the function to name.
    saved: the metadata of the student.
    identity: the hash of the teacher at hand; '' for none.

  Raises:
    DataError: the hashes differ.
  """
  if saved['teacher'] != identity:
    raise checks.DataError(
        f'{where}: teacher must be the one that training began with; got '
        f'{identity[:12] or "none"}, and the checkpoint has '
        f'{saved["teacher"][:12] or "none"}. Choose another --workdir, or '
        'bring back the old teacher.')


def check_vocabulary(where: str, saved: Mapping[str, Any],
                     identity: str) -> None:
  """Refuses a student whose tokens were others.

  Args:
    where: the function to name.
    saved: the metadata of the student.
    identity: that of the data's tokenizer, pruned or not; '' for none.

  Raises:
    DataError: they differ.
  """
  if saved['vocabulary'] != identity:
    raise checks.DataError(
        f'{where}: texts must give the vocabulary that training began with; '
        f'got {identity or "none"}, and the checkpoint has '
        f'{saved["vocabulary"] or "none"}. Bring back the tokenizer and, where '
        'it is pruned, the texts of the split train, or choose another '
        '--workdir.')


def _find(path):
  path = paths.absolute(path)
  return _agree(lambda: leaves_lib.find(path / FOLDER) or leaves_lib.find(path))


def _agree(find):
  """Returns the folder that process 0 finds, or None."""

  def search():
    folder = find()
    return folder and str(folder)

  found = distributed.first(search)
  return found and paths.as_path(found)


def _newest(where, path):
  folder = _find(path)
  if folder is None:
    raise checks.DataError(
        f'{where}: path must hold a checkpoint; got path={path}. Give the '
        'workdir of a run that has saved one.')
  return folder
