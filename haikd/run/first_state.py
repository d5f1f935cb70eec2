"""The state that a training begins with, or goes on from."""

from typing import Any, Optional

import jax

from haikd import config as config_lib
from haikd.core import base
from haikd.core import garbage
from haikd.data import batches
from haikd.data import pipeline
from haikd.engine import program as program_lib
from haikd.run import calibration
from haikd.run import pretrained
from haikd.run import teachers
from haikd.storage import checkpoint
from haikd.storage import checkpointer as checkpointer_lib
from haikd.storage import paths


def resume(workdir: paths.Path, program: program_lib.Program,
           checkpointer: checkpointer_lib.Checkpointer,
           iterator: batches.BatchIterator,
           identity: dict[str, str]) -> tuple[Any, dict[str, Any]]:
  """Returns the newest state, or None, and what was saved with it.

  Args:
    workdir: of the training.
    program: of the training.
    checkpointer: of the workdir.
    iterator: of the data, which is moved to where the state left it.
    identity: of the teacher and the vocabulary.

  Raises:
    DataError: the state is that of another teacher or vocabulary.
  """
  saved: dict[str, Any] = dict(seconds=0.0, evaluated=True, best=None,
                               rollbacks=0, rows=0, entered=False, phases={})
  if checkpoint.has_checkpoint(workdir):
    saved.update(checkpoint.metadata(workdir))
  # The state is as the stage left it that took the last step, or as the next
  # one has begun with it.
  stage = program.stages[program.stage_of(
      checkpoint.steps_taken(workdir) + saved['entered'])]
  restored = checkpointer.restore(stage.abstract_state)
  if restored is None:
    return None, saved
  state, iterator_state, metadata = restored
  checkpoint.check_vocabulary(metadata, identity['vocabulary'])
  checkpoint.check_teacher(metadata, identity['teacher'])
  iterator.set_state(iterator_state)
  return state, saved


def start(config: config_lib.ConfigDict, program: program_lib.Program,
          data: pipeline.Data,
          teacher: Optional[teachers.Teacher]) -> base.TrainState:
  """Returns the state before the first step.

  Args:
    config: as for `trainer.train`.
    program: as for `trainer.train`.
    data: as for `trainer.train`.
    teacher: as for `trainer.train`.

  Raises:
    DataError: the weights of `config.student.init` cannot be loaded.
  """
  with garbage.uncollected():  # It is traced and compiled here.
    state = program.init(jax.random.key(config.seed))
  state = calibration.calibrate(config, program, data, state, teacher)
  if not config.student.init:
    return state
  expected = program.abstract_state
  params, net_state = pretrained.load(
      config, 'student',
      base.Variables(expected.params.student, expected.net_state), data)
  return state._replace(
      params=state.params._replace(student=params), net_state=net_state,
      ema=None if state.ema is None else jax.tree.map(jax.numpy.copy, params))
