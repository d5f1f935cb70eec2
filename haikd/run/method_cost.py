"""What a step of a method takes: time and memory."""

from typing import Any, NamedTuple

from haikd import config as config_lib
from haikd.engine import mesh as mesh_lib
from haikd.run import adaptive
from haikd.run import rates
from haikd.run import resolve
from haikd.run import trainees
from haikd.run import workdir as workdir_lib
from haikd.run import writer
from haikd.storage import files
from haikd.storage import paths


class Cost(NamedTuple):
  """What a step takes.

  Attributes:
    step_seconds: that of the fastest stretch between two lines of metrics, over
      all seeds: what else the machine does can only slow it down.
    step_bytes: the memory of a device for what the step computes in between,
      as the compiler plans it; parameters and batches are not in it.
  """

  step_seconds: float
  step_bytes: int


def measure(config: config_lib.ConfigDict, workdir: paths.ConcretePath) -> Cost:
  """Returns what a step of a method has taken.

  Args:
    config: of the method; its teacher exists.
    workdir: of the method, with its finished seeds.
  """
  folders = [workdir / name for name in sorted(paths.names(workdir))
             if name.startswith(workdir_lib.SEED)]
  speeds = [
      row[rates.EXAMPLES] for folder in folders
      for row in files.read_rows(folder / writer.METRICS_FILE)
      if row['split'] == 'train']
  config = resolve.from_pretrained(config)
  student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  # Adaptive layers are those that the first seed has found.
  student = adaptive.settle(student, None, folders[0])
  program = student.program
  step: Any = program.train_step  # Compiled by jit.
  stage = program.stages[0]
  compiled = step.trace(stage.abstract_state, stage.abstract_frozen,
                        student.data.spec).lower().compile()
  return Cost(config.batch_size / max(speeds),
              compiled.memory_analysis().temp_size_in_bytes)
