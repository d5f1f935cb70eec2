"""Which metrics there are of what a network returns.

A family measures on the device, batch by batch, and finishes on the host, when
all batches have been measured. What it measures is sums, which add up over
batches and devices, and columns, of which every example has a row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import jax

from haikd.core import base
from haikd.core import checks
from haikd.losses import chunks
from haikd.losses import cutting
from haikd.metrics import classes
from haikd.metrics import embeddings
from haikd.metrics import tokens

# By family: sums are pytrees of arrays, columns pytrees of arrays [B, ...].
Measured = tuple[dict[str, Any], dict[str, Any]]


class Family(NamedTuple):
  """The metrics of one kind of output.

  Attributes:
    measure: `(output, target, *, mask, labels) -> (sums, columns)`; see
      `measure`.
    finish: `(sums, columns) -> {metric: float}`, of the whole split, NumPy.
  """

  measure: Callable[..., tuple[Any, Any]]
  finish: Callable[[Any, Any], dict[str, float]]


FAMILIES = {
    name: Family(room.measure, room.finish)
    for name, room in (('classes', classes), ('tokens', tokens),
                       ('embeddings', embeddings))
}


def measure(output: base.Output,
            target: Optional[base.Output],
            *,
            mask: jax.Array,
            labels: Optional[jax.Array] = None,
            sizes: cutting.ChunkSizes = cutting.ChunkSizes()) -> Measured:
  """Compares what a network returned with labels and with a teacher's.

  Sums are additive over `B`.

  Args:
    output: logits `[B, V]` or `[B, N, V]` float32, or LinearLogits, or an
      Embedding.
    target: the teacher's, or None. One of another kind is not compared with.
    mask: bool, the leading axes of what was returned, true where it counts.
    labels: as in `Batch`, or None.
    sizes: of the chunks in which LinearLogits are computed.

  Returns:
    `{family: sums}` and `{family: columns}`, for `finish`.
  """
  name = _family(output)
  if target is not None and _family(target) != name:
    target = None
  # Scores say nothing of logits.
  if labels is not None and name != 'embeddings' and checks.are_scores(labels):
    labels = None
  family = FAMILIES[name]
  if isinstance(output, base.LinearLogits):
    # What is measured of logits has no columns, and positions do not interact.
    sums = chunks.add_up(
        lambda *sides, **others: family.measure(*sides, **others)[0],
        output, target, mask=mask, labels=labels, sizes=sizes)
    return {name: sums}, {name: {}}
  if isinstance(target, base.LinearLogits):
    target = target.materialise()
  sums, columns = family.measure(output, target, mask=mask, labels=labels)
  return {name: sums}, {name: columns}


def finish(sums: dict[str, Any], columns: dict[str,
                                               Any]) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: as from `measure`, added up over all batches.
    columns: as from `measure`, the rows of all batches together; NumPy.

  Returns:
    `{metric: value}`, NaN where there is nothing to tell it from.
  """
  found = {}
  for name, family in FAMILIES.items():
    if name in sums:
      found.update(family.finish(sums[name], columns[name]))
  return found


def _family(output):
  if isinstance(output, base.Embedding):
    return 'embeddings'
  return 'classes' if len(output.shape) == 2 else 'tokens'
