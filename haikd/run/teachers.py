"""The teachers of a run: that of the config, and those of stages."""

from collections.abc import Callable, Mapping
import functools
import hashlib
from typing import NamedTuple

from haikd import config as config_lib
from haikd.core import base
from haikd.data import pipeline
from haikd.engine import abstract
from haikd.engine import program as program_lib
from haikd.engine import stages as stages_lib
from haikd.objective import recorded as recorded_lib
from haikd.run import pretrained
from haikd.storage import fingerprint
from haikd.teacher_records import records as records_lib


class Teacher(NamedTuple):
  """A teacher that a student learns from and is compared with.

  Attributes:
    frozen: its parameters, in its compute dtype, and its state, on the mesh.
    identity: a hash of it, and of those of stages, kept with every checkpoint
      of its student.
    others: what loads the teacher of a stage, by the number of the stage, where
      it is another one.
  """

  frozen: base.Variables
  identity: str
  others: Mapping[int, Callable[[], base.Variables]] = {}

  def of_stage(self, number: int) -> base.Variables:
    """Returns the teacher of a stage, which may be read from its files."""
    return self.others[number]() if number in self.others else self.frozen


def freeze(config: config_lib.ConfigDict, program: program_lib.Program,
           data: pipeline.Data, network: base.Variables) -> Teacher:
  """Returns the teacher of a run.

  Those of stages are read once, so that each is known, and then when their
  stage begins: one of them at a time is in memory.

  Args:
    config: of the student, resolved.
    program: its program.
    data: its data.
    network: parameters and state of `config.teacher`.

  Raises:
    DataError: as `pretrained.load`, of a stage.
  """
  frozen = program.freeze(network)
  others = {
      number: functools.partial(_load, stage, expected, data)
      for number, stage, expected in _of_stages(config, program)}
  hashes = [fingerprint.tree_hash(frozen),
            *(fingerprint.tree_hash(load()) for load in others.values())]
  identity = hashes[0]
  if others:
    identity = hashlib.sha256(' '.join(hashes).encode()).hexdigest()
  return Teacher(frozen, identity, others)


def check(config: config_lib.ConfigDict, program: program_lib.Program,
          data: pipeline.Data) -> None:
  """Refuses weights that a teacher of a stage cannot have.

  Args:
    config: as for `freeze`.
    program: as for `freeze`.
    data: as for `freeze`.

  Raises:
    DataError: as `pretrained.check`.
  """
  for _, stage, expected in _of_stages(config, program):
    with stages_lib.errors_of(stage):
      pretrained.check(stage.config, 'teacher', expected, data)


def of_records(program: program_lib.Program,
               records: records_lib.Records) -> Teacher:
  """Returns what takes the place of a teacher that was recorded.

  Args:
    program: of the student.
    records: of its teacher.
  """
  variables = recorded_lib.of_records(records).variables(records.unembedding)
  return Teacher(program.freeze(variables), records.recipe.identity)


def _of_stages(config, program):
  """Returns the number, the stage and the shapes of each other teacher."""
  stages = zip(config_lib.stages_of(config), program.stages)
  return [(number, stage, built.abstract_frozen)
          for number, (stage, built) in enumerate(stages) if built.taught_by]


def _load(stage, expected, data):
  with stages_lib.errors_of(stage):
    network = pretrained.load(stage.config, 'teacher', expected, data)
  return abstract.freeze(network, expected)
