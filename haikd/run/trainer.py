"""Training, from resuming to the last checkpoint. Reads top to bottom."""

from collections.abc import Callable
import contextlib
from typing import Optional

import jax

from haikd import config as config_lib
from haikd.data import pipeline
from haikd.engine import program as program_lib
from haikd.processes import distributed
from haikd.run import programs
from haikd.run import teachers
from haikd.run import trackers
from haikd.run import training as training_lib
from haikd.run import training_log as log_lib
from haikd.run import writer as writer_lib
from haikd.storage import checkpointer as checkpointer_lib
from haikd.storage import paths


def train(config: config_lib.ConfigDict, program: program_lib.Program,
          data: pipeline.Data, teacher: Optional[teachers.Teacher],
          workdir: paths.Path, title: str,
          settle: Optional[Callable] = None) -> training_lib.Trained:
  """Trains `config.student`, or goes on where its training stopped.

  Args:
    config: a validated config, its plugins imported.
    program: from `build_program(config, …)`.
    data: from `build_data(config)`.
    teacher: the teacher to learn from; None to learn from the labels alone.
    workdir: the folder of its checkpoints and metrics.
    title: its title on the progress bar.
    settle: see `trainees.Trainee`.

  Returns:
    The trained network.

  Raises:
    DataError: data or files cannot be used.
    DivergedError: the loss, a gradient or a parameter is not finite.
    StoppedError: SIGTERM has come, and the step in which it came is saved.
  """
  go_on = config.checkpoint_on_error == 'go_on'
  with (distributed.stoppable(),
        checkpointer_lib.Checkpointer(
            workdir, keep=config.keep_checkpoints, go_on=go_on) as checkpointer,
        writer_lib.open_writer(
            workdir, total_steps=config.steps, title=title,
            enabled=jax.process_index() == 0,
            tracker=trackers.open_tracker(config, workdir, title),
            go_on=go_on) as writer):
    training = training_lib.Training(
        config, program, data, teacher, workdir, title, settle, checkpointer,
        writer)
    with contextlib.closing(training), programs.of(title):
      training.begin()
      while True:
        try:
          training.take_steps()
          break
        except log_lib.Wrong as wrong:
          training.recover(wrong)
      training.finish()
  return training.result()
