"""What checkpoints cost: the loop over steps with and without, in turn.

  taskset -c 0 python tests/bench/checkpoints.py --rounds=20

The student of the default job is trained again and again in one process, by the
program of a run: with a checkpoint every 100 steps, and with none but the last,
which both wait for. Neither evaluates before the end. Printed is the ratio of
their times, median and range over the rounds: on the clock, and of processor
time, which a busy machine disturbs less.
"""

import argparse
import contextlib
import io
import pathlib
import statistics
import tempfile
import time

import jax

from haikd.config import file as config_file
from haikd.core import base
from haikd.engine import mesh as mesh_lib
from haikd.run import resolve
from haikd.run import teachers
from haikd.run import trainees
from haikd.run import training as training_lib
from haikd.run import writer as writer_lib
from haikd.storage import checkpointer as checkpointer_lib

NEVER = 10**9


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--config', default='haikd:digits_mlp_from_convnet')
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--steps', type=int, default=1000)
  parser.add_argument('--every', type=int, default=100)
  flags = parser.parse_args()
  config = config_file.load(flags.config)
  config.steps = config.evaluation.every = flags.steps
  config = resolve.from_pretrained(config)
  student, _, _ = trainees.build_all(config, mesh_lib.build_mesh(config.mesh))
  teacher = make_teacher(student)
  ratios = dict(clock=[], processor=[])
  for number in range(flags.rounds + 1):
    order = (flags.every, NEVER) if number % 2 else (NEVER, flags.every)
    times = {every: train(student, teacher, every) for every in order}
    if not number:
      continue  # It compiles.
    for kind, saved, bare in zip(ratios, times[flags.every], times[NEVER]):
      ratios[kind].append(saved / bare)
    print(f'round {number}: {times[flags.every][0]:.3f} s with, '
          f'{times[NEVER][0]:.3f} s without', flush=True)
  for kind, found in ratios.items():
    print(f'{kind}: {describe(found)} with a checkpoint every {flags.every} of '
          f'{flags.steps} steps')


def describe(ratios):
  low, high = min(ratios), max(ratios)
  return f'{statistics.median(ratios):.4f} ({low:.4f} to {high:.4f})'


def make_teacher(student):
  """Returns a teacher as it is initialised: its quality takes no time."""
  network = student.program.objective.teacher
  variables = jax.jit(network.init)(jax.random.key(1), next_batch(student))
  return teachers.freeze(student.config, student.program, student.data,
                         base.Variables(*variables))


def next_batch(student):
  return next(student.data.train())


def train(student, teacher, every):
  """Trains to the end; returns the seconds on the clock and of processors."""
  config = student.config.copy_and_resolve_references()
  config.checkpoint_every = every
  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(
      io.StringIO()):
    workdir = pathlib.Path(folder) / 'run'
    with checkpointer_lib.Checkpointer(workdir, keep=2) as checkpointer:
      with writer_lib.open_writer(
          workdir, total_steps=config.steps, title='student', enabled=True,
          tracker=None) as writer:
        training = training_lib.Training(
            config, student.program, student.data, teacher, workdir, 'student',
            None, checkpointer, writer)
        training.begin()
        start = time.perf_counter(), time.process_time()
        training.take_steps()
        checkpointer.wait()
        return (time.perf_counter() - start[0],
                time.process_time() - start[1])


if __name__ == '__main__':
  main()
