"""Whether there is room for a run, judged by shapes before anything is made."""

from haikd.core import base
from haikd.core import memory
from haikd.engine import program as program_lib


def check(program: program_lib.Program, batch: base.Batch, title: str) -> None:
  """Refuses batches and networks that memory has no room for.

  Args:
    program: of the run.
    batch: the global training batch, of ShapeDtypeStructs.
    title: of the network that is trained, for messages.

  Raises:
    ConfigError: there is no room.
  """
  memory.check_batch('config.batch_size', batch)
  size = memory.bytes_per_device(
      (program.abstract_state, program.abstract_frozen))
  memory.check(
      'config.student, config.teacher and their options', size,
      f'the {title} needs, on each device,',
      memory.of_device(program.mesh.local_devices))
