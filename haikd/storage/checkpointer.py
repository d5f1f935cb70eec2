"""Saves checkpoints during training, and restores the newest."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import shutil
from typing import Any, Optional

import jax
import orbax.checkpoint as ocp

import haikd
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.processes import distributed
from haikd.storage import checkpoint
from haikd.storage import checksums
from haikd.storage import files
from haikd.storage import leaves as leaves_lib
from haikd.storage import paths

ASIDE = 'damaged_checkpoints'
# In the workdir: the step that is being saved. What a kill leaves of it is
# removed; unfinished checkpoints of others are not.
_SAVING_FILE = '.saving'
_UNFINISHED = '.orbax-checkpoint-tmp'


class _OwnSteps:
  """Names checkpoints by their steps, and finds those of this run alone."""

  def __init__(self) -> None:
    self._names = ocp.step.standard_name_format()

  def build_name(self, step: int) -> str:
    """Returns the name of a step's folder."""
    return self._names.build_name(step)

  def find_all(self, base_path: Any) -> Iterator[Any]:
    """Returns what is known of each complete checkpoint in a folder."""
    return (found for found in self._names.find_all(base_path)
            if leaves_lib.is_ours(paths.as_path(found.path)))

  def find_step(self, base_path: Any, step: int) -> Any:
    """Returns what is known of the checkpoint of a step."""
    return self._names.find_step(base_path, step)


class Checkpointer:
  """Saves and restores a run; use it in a `with` statement.

  Attributes:
    best: the step of the best checkpoint, which is kept besides; None if all
      are equally good. It is saved with every checkpoint, and who reads the
      network of this run gets that of this step.

  Args:
    workdir: a folder that all processes see, created if missing. Unfinished
      checkpoints of a killed run are removed, and damaged ones are moved to its
      folder `damaged_checkpoints` if there is one before. What others have
      written there is left alone.
    keep: how many of the newest checkpoints to keep.
    go_on: whether one that cannot be written is only said.
  """

  def __init__(self, workdir: files.Path, *, keep: int, go_on: bool = False):
    self._goes_on = go_on and not distributed.is_many()
    self._folder = paths.absolute(workdir) / checkpoint.FOLDER
    self._keep = keep
    self.best: Optional[int] = None
    self._saving: Optional[int] = None  # The step that is being saved.
    distributed.first(self._set_damaged_aside)
    if not paths.is_remote(workdir):
      distributed.first(self._remove_unfinished)
    with leaves_lib.writing(self._folder):
      self._manager = ocp.CheckpointManager(
          self._folder,
          options=ocp.CheckpointManagerOptions(
              preservation_policy=self, step_name_format=_OwnSteps(),
              # In a bucket they have the name of the step.
              cleanup_tmp_directories=paths.is_remote(self._folder),
              async_options=ocp.AsyncOptions(
                  post_finalization_callback=self._add_checksums)))

  def should_preserve(self, checkpoints: Sequence[Any], *,
                      context: Any) -> list[bool]:
    """Tells Orbax which checkpoints, oldest first, to keep."""
    del context
    newest = len(checkpoints) - self._keep
    return [i >= newest or saved.step == self.best
            for i, saved in enumerate(checkpoints)]

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
    extra = self._extra(iterator_state, metadata)
    self.wait()  # For the one before.
    with self._writing(f'the checkpoint of step {step}'):
      distributed.first(lambda: self._begin(step))
      self._manager.save(
          step,
          args=ocp.args.Composite(
              state=ocp.args.PyTreeSave(leaves_lib.flatten(state)),
              metadata=ocp.args.JsonSave(extra)))

  def amend(self, step: int, iterator_state: Mapping[str, Any],
            metadata: Mapping[str, Any]) -> None:
    """Replaces what was saved beside a state, which stays as it is.

    The checkpoint is complete at every moment, with the old content or the new
    one, and none is removed: one that is the best no more goes with the next
    `save`. Call it on all processes.

    Args:
      step: of a checkpoint that is there and complete.
      iterator_state: as for `save`.
      metadata: as for `save`.

    Raises:
      DataError: it cannot be written.
    """
    extra = self._extra(iterator_state, metadata)
    with self._writing(f'what is beside the checkpoint of step {step}'):
      distributed.first(
          lambda: leaves_lib.amend_extra(self._folder / str(step), extra))

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
    folder = checkpoint.newest(self._folder)
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

  def has(self, step: Optional[int]) -> bool:
    """Returns whether the checkpoint of a step is there and complete."""
    return step in self._manager.all_steps()

  def latest_step(self) -> Optional[int]:
    """Returns the step of the newest complete checkpoint, or None."""
    return self._manager.latest_step()

  def wait(self) -> None:
    """Returns when all that was saved is complete on disk."""
    with self._writing(f'the checkpoint of step {self._saving}'):
      self._manager.wait_until_finished()

  def _extra(self, iterator_state, metadata):
    """Returns what is saved beside a state, as JSON can hold it."""
    return files.to_json(dict(
        iterator=iterator_state,
        metadata=metadata,
        best_step=self.best,
        haikd_version=haikd.__version__))

  def _begin(self, step):
    """Notes the step that is to be saved, for which there must be room."""
    self._saving = step
    folder = self._folder / str(step)
    others = [folder] * (
        paths.exists(folder) and not leaves_lib.is_ours(folder))
    if not paths.is_remote(folder):
      others += self._folder.glob(f'{step}{_UNFINISHED}')
    if others:
      raise checks.DataError(
          f'--workdir must have room for the checkpoint of step {step}; got '
          f'{others[0]}, which this run did not write. Move it elsewhere.')
    if not paths.is_remote(folder):
      paths.replace(self._folder.parent / _SAVING_FILE, str(step).encode())

  def _add_checksums(self):
    """Writes those of the checkpoint that is about to get its name."""
    if jax.process_index() == 0 and not paths.is_remote(self._folder):
      checksums.write(self._folder / f'{self._saving}{_UNFINISHED}')

  def _remove_unfinished(self):
    """Removes what a kill has left of a save, and says what is not ours."""
    note = self._folder.parent / _SAVING_FILE
    if note.exists():
      with leaves_lib.writing(self._folder):
        unfinished = self._folder / f'{note.read_text()}{_UNFINISHED}'
        if note.read_text().isdigit() and unfinished.is_dir():
          shutil.rmtree(unfinished)
    for name in sorted(paths.names(self._folder)):
      if not leaves_lib.is_ours(self._folder / name):
        notes.say(f'{self._folder / name} is left alone, since this run did '
                  'not write it.')

  def _set_damaged_aside(self):
    aside = self._folder.parent / ASIDE
    damaged = leaves_lib.damaged(self._folder)
    if damaged and not leaves_lib.find(self._folder):
      raise checks.DataError(
          f'checkpoint must be as it was saved; got {damaged[0]}, where '
          f'{checksums.problem(damaged[0])}. Bring back its files, or choose '
          'another --workdir.')
    with leaves_lib.writing(self._folder):
      for folder in damaged:
        aside.mkdir(exist_ok=True)
        number = sum(name.split('-')[0] == folder.name
                     for name in paths.names(aside))
        folder.rename(aside / (f'{folder.name}-{number}' if number else
                               folder.name))

  def close(self) -> None:
    """Waits until all is saved, then frees the resources for saving."""
    self.wait()
    with self._writing('a checkpoint'):
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self, what):
    """Turns any error inside into a DataError, or says it if training goes on.

    Args:
      what: is being written, for the message.
    """
    try:
      with leaves_lib.writing(self._folder):
        yield
    except checks.DataError as err:
      if not self._goes_on:
        raise
      if not paths.is_remote(self._folder):
        shutil.rmtree(self._folder / f'{self._saving}{_UNFINISHED}',
                      ignore_errors=True)
      notes.say(f'{what} was not written, and training goes on '
                f'(config.checkpoint_on_error): {err}')
