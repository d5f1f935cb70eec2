"""What a teacher scores, kept for other seeds, students and restarts.

The teacher's row of a language model costs as much as the student's, and is the
same in every run. The sums of a batch are kept under hashes of all that they
follow from: the teacher's weights, the program as it is given to the compiler
(networks, metrics, precision, mesh), the kind of device, and the batch.
"""

from collections.abc import Iterable
import hashlib
from typing import Any, Optional

import jax
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.engine import abstract
from haikd.engine import program as program_lib
from haikd.processes import distributed
from haikd.storage import files
from haikd.storage import outputs
from haikd.storage import paths

_FOLDER = 'scores'
# Beside what is in the program's text.
_VERSIONS = ('haikd scores 1', jax.__version__, jax.lib.__version__)


class Step:
  """The evaluation of a teacher, which remembers batches.

  Attributes:
    path: the file of what is kept.
    reused: how many batches were not computed.

  Args:
    lowered: the evaluation step, lowered.
    text: of the lowered program.
    identity: a hash of the teacher's weights.
  """

  def __init__(self, lowered: jax.stages.Lowered, text: str, identity: str):
    self._lowered = lowered
    self._compiled: Optional[jax.stages.Compiled] = None
    kind = jax.devices()[0].device_kind
    key = _hash(part.encode() for part in (*_VERSIONS, kind, identity, text))
    self.path = outputs.cache(_FOLDER) / f'{key}.json'
    self.reused = 0
    self._kept = _read(self.path)
    self._new: dict[str, Any] = {}

  def __call__(self, teacher: base.Variables, frozen: None,
               batch: base.Batch) -> tuple[Any, Any]:
    """Returns sums and columns of a batch, as the step does.

    All batches of a split have the shapes that the step was lowered for.
    """
    key = _hash(_content(batch))
    if key in self._kept:
      self.reused += 1
      return self._kept[key]
    if self._compiled is None:
      self._compiled = self._lowered.compile()
    self._new[key] = self._compiled(teacher, frozen, batch)
    return self._new[key]

  def keep(self) -> None:
    """Writes what was computed; a cache that cannot be written is no fault."""
    if not self._new:
      return
    results = self._kept | jax.device_get(self._new)
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(self.path, {
          key: jax.tree.map(lambda x: float(x).hex(), _plain(sums))
          for key, (sums, _) in results.items()})
    except (OSError, checks.DataError):
      pass


def step_of(program: program_lib.Program, identity: str,
            spec: base.Batch) -> Optional[Step]:
  """Returns a step that remembers; None where nothing can be kept.

  That is where metrics have more than sums, or are the user's own, whose code
  on the host has no hash; and in one of several processes, which sees a part of
  each batch.

  Args:
    program: with a live teacher.
    identity: a hash of the teacher's weights.
    spec: of the evaluated batches.
  """
  step: Any = program.teacher_eval_step
  if distributed.is_many() or program.own_metrics:
    return None
  lowered = step.lower(program.abstract_frozen, None,
                       abstract.batch_of(spec, program.mesh))
  sums, columns = lowered.out_info
  text = lowered.as_text()
  hidden = 'callback' in text or 'jax.const' in text  # Not in the text.
  if jax.tree.leaves(columns) or hidden or not all(
      isinstance(x, base.LossSum) for family in sums.values()
      for x in family.values()):
    return None
  try:
    return Step(lowered, text, identity)
  except RuntimeError:  # There is no home folder.
    return None


def _plain(sums):
  return {family: {name: tuple(x) for name, x in metrics.items()}
          for family, metrics in sums.items()}


def _read(path):
  """Returns what is kept, by batch; {} where that cannot be read."""
  try:
    if not paths.exists(path):
      return {}
    return {key: ({family: {name: base.LossSum(*(
        np.float32(float.fromhex(part)) for part in parts))
                            for name, parts in metrics.items()}
                   for family, metrics in sums.items()},
                  {family: {} for family in sums})
            for key, sums in files.read_json(path).items()}
  except (OSError, checks.DataError, AttributeError, TypeError, ValueError):
    return {}  # It is computed again, and written.


def _content(batch) -> Iterable[bytes]:
  leaves, structure = jax.tree.flatten(batch)
  yield str(structure).encode()
  for leaf in leaves:
    array = np.ascontiguousarray(leaf)
    yield f'{array.dtype} {array.shape}'.encode()
    yield array.tobytes()


def _hash(parts: Iterable[bytes]) -> str:
  digest = hashlib.sha256()
  for part in parts:
    digest.update(f'{len(part)} '.encode())
    digest.update(part)
  return digest.hexdigest()
