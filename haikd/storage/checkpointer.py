"""Saves checkpoints during training, and restores the newest."""

from collections.abc import Iterator, Mapping
from concurrent import futures
import contextlib
from typing import Any, NamedTuple, Optional

import jax

import haikd
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.processes import distributed
from haikd.storage import checkpoint
from haikd.storage import files
from haikd.storage import leaves as leaves_lib
from haikd.storage import one_file
from haikd.storage import orbax_arrays
from haikd.storage import paths
from haikd.storage import preparing
from haikd.storage import publishing
from haikd.storage import step_folder


class _Saving(NamedTuple):
  """A checkpoint that is being written.

  Attributes:
    step: of it.
    written: when and whether this process has written its leaves, and on many
      processes all others theirs.
    published: when and whether it is complete; its result, on the first
      process, is the steps of all checkpoints that are then there.
  """

  step: int
  written: futures.Future
  published: futures.Future


class Checkpointer:
  """Saves and restores a run; use it in a `with` statement.

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
    self._bests: list[int] = []  # The best steps so far, the newest last.
    self._saving: Optional[_Saving] = None
    self._orbax: Optional[orbax_arrays.Writer] = None
    # The steps of the complete checkpoints, oldest first.
    self._steps: list[int] = distributed.first(
        lambda: preparing.prepare(self._folder))
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix='saves')

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, kind, *unused) -> None:
    # Closing waits for all processes, and after an error some may never come.
    if kind is None or not distributed.is_many():
      self.close()

  def set_best(self, step: Optional[int]) -> None:
    """Says which step is the best; None if all are equally good.

    Its checkpoint is kept besides the newest, and who reads the network of this
    run gets that of this step. If it cannot be written, the best one before
    takes its place.
    """
    self._bests = [] if step is None else [*self._bests, step]

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
    self.wait()  # For the one before.
    steps = [*self._steps, step]
    extra = files.encode(self._extra(iterator_state, metadata, steps))
    with self._writing(step):
      folder = self._folder / str(step)
      distributed.first(lambda: self._begin(folder))
      leaves = leaves_lib.flatten(state)
      state_folder = publishing.unfinished_of(folder) / step_folder.STATE
      content = one_file.encode(leaves)
      if content is None:
        self._orbax = self._orbax or orbax_arrays.Writer()
        self._orbax.start(state_folder, leaves)
      kept = {*steps[-self._keep:], self._best_of(steps)}

      def write():
        with publishing.writing(self._folder):
          if content is None:
            self._orbax.wait()
            return {}
          return {f'{step_folder.STATE}/{one_file.NAME}':
                  one_file.write(state_folder, content)}

      written = self._pool.submit(write)

      def publish():
        sums = written.result()
        if not distributed.is_first():
          return None
        with publishing.writing(self._folder):
          publishing.publish(folder, extra, sums)
        return [x for x in steps if x in kept or not self._remove(x)]

      self._saving = _Saving(step, written, self._pool.submit(publish))

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
    extra = self._extra(iterator_state, metadata, self._steps)

    def amend():
      with publishing.writing(self._folder):
        step_folder.amend_extra(self._folder / str(step), extra)

    with self._going_on(f'what is beside the checkpoint of step {step}'):
      distributed.first(amend)

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
        step_folder.read_shapes(folder),
        'Choose another --workdir, or go back to the config that it was '
        'trained with')
    leaves = step_folder.read_leaves(folder, expected)
    extra = step_folder.read_extra(folder)
    state = jax.tree.unflatten(
        jax.tree.structure(abstract_state), [leaves[name] for name in expected])
    return state, extra['iterator'], extra['metadata']

  def has(self, step: Optional[int]) -> bool:
    """Returns whether the checkpoint of a step is there and complete."""
    return step in self._steps

  def latest_step(self) -> Optional[int]:
    """Returns the step of the newest complete checkpoint, or None."""
    return self._steps[-1] if self._steps else None

  def wait(self) -> None:
    """Returns when all that was saved is complete on disk."""
    saving, self._saving = self._saving, None
    if saving is None:
      return
    with self._writing(saving.step):
      # The others wait for one that fails to write: it has to say so itself,
      # before it waits for them.
      saving.written.result()
      self._steps = distributed.first(saving.published.result)

  def close(self) -> None:
    """Waits until all is saved, then frees the resources for saving."""
    failed = True
    try:
      self.wait()
      failed = False
    finally:
      self._pool.shutdown()
      if self._orbax and not (failed and distributed.is_many()):
        self._orbax.close()  # It waits for all processes.

  def _best_of(self, steps):
    """Returns the newest best step that is among some steps, or None."""
    return next((x for x in reversed(self._bests) if x in steps), None)

  def _extra(self, iterator_state, metadata, steps):
    """Returns what is saved beside a state."""
    return dict(
        iterator=iterator_state,
        metadata=metadata,
        best_step=self._best_of(steps),
        haikd_version=haikd.__version__)

  def _begin(self, folder):
    """Makes the folder of a checkpoint, for which there must be room."""
    if paths.exists(folder):
      raise checks.DataError(
          f'--workdir must have room for the checkpoint of step {folder.name}; '
          f'got {folder}, which this run did not write. Move it elsewhere.')
    with publishing.writing(self._folder):
      publishing.begin(folder)

  def _remove(self, step):
    """Returns whether an old checkpoint is removed; says one that is not."""
    folder = self._folder / str(step)
    try:
      publishing.remove(folder)
    except Exception as err:  # Of a bucket there are many kinds.
      notes.say(f'{folder}, an old checkpoint, could not be removed '
                f'({checks.one_line(err)}); each save tries it again.')
      return False
    return True

  @contextlib.contextmanager
  def _writing(self, step: int) -> Iterator[None]:
    """Turns an error of saving a step into a DataError, or says it.

    What is unfinished is removed if training goes on.
    """
    with self._going_on(f'the checkpoint of step {step}'):
      try:
        with publishing.writing(self._folder):
          yield
      except checks.DataError:
        if self._goes_on:
          publishing.discard(self._folder / str(step))
        raise

  @contextlib.contextmanager
  def _going_on(self, what: str) -> Iterator[None]:
    """Says a DataError inside if training goes on.

    Args:
      what: is being written, for the message.
    """
    try:
      yield
    except checks.DataError as err:
      if not self._goes_on:
        raise
      notes.say(f'{what} was not written, and training goes on '
                f'(config.checkpoint_on_error): {err}')
