"""What a run compiles beside its training step, and how long that takes."""

from collections.abc import Sequence
from typing import Any

import jax

from haikd import config as config_lib
from haikd.core import base
from haikd.engine import abstract
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.plan import compiling
from haikd.run import console
from haikd.run import programs

_COLUMNS = programs.COLUMNS[:-1]  # A plan uses no cache.


def of_program(config: config_lib.ConfigDict, program: program_lib.Program,
               spec: base.Batch) -> tuple[compiling.Other, ...]:
  """Returns initialisation and evaluations of a run.

  Args:
    config: of the run.
    program: of the student.
    spec: of a training batch.
  """
  mesh, frozen = program.mesh, program.abstract_frozen
  shards = mesh_lib.batch_shards(mesh)
  size = -(-config.evaluation.batch_size // shards) * shards
  resized = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype),
      spec._replace(teacher=None))
  batch = abstract.batch_of(resized, mesh)
  key = jax.eval_shape(lambda: jax.random.key(0))
  student = program_lib.trained_network(program.abstract_state)
  others = [compiling.Other('student', program.init, (key,)),
            compiling.Other('student', program.eval_step,
                            (student, frozen, batch))]
  if program.teacher_eval_step:
    others.append(compiling.Other(
        'teacher', program.teacher_eval_step, (frozen, None, batch)))
  return tuple(others)


def show(topology: str, made: Sequence[programs.Program]) -> None:
  """Prints how long each program took.

  Args:
    topology: its name.
    made: the programs.
  """
  rows = [row[:-1] for row in programs.rows(made)]
  console.table(rows, [f'{topology}: {_COLUMNS[0]}', *_COLUMNS[1:]])


def to_json(made: Sequence[programs.Program]) -> list[dict[str, Any]]:
  """Returns programs as they are written to `plan.json`."""
  return [{name: value for name, value in x._asdict().items()
           if name != 'is_cached'} for x in made]
