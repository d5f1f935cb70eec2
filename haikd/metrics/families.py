"""Chooses metrics by the kind of a network's output.

A family of metrics measures on the device, batch by batch, and finishes on the
host, after the last batch. It measures sums, which add up over batches and
devices, and columns, which have a row for every example.
"""

from collections.abc import Callable
from typing import Any, cast, NamedTuple, Optional

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
    finish: `(sums, columns) -> {metric: float}` of a split; NumPy.
  """

  measure: Callable[..., tuple[Any, Any]]
  finish: Callable[[Any, Any], dict[str, float]]


FAMILIES = {
    name: Family(module.measure, module.finish)
    for name, module in (('classes', classes), ('tokens', tokens),
                         ('embeddings', embeddings))
}


def measure(output: base.Output,
            target: Optional[base.Output],
            *,
            mask: jax.Array,
            labels: Optional[jax.Array] = None,
            sizes: cutting.ChunkSizes = cutting.ChunkSizes()) -> Measured:
  """Compares a network's output with labels and with a teacher's output.

  Sums are additive over `B`.

  Args:
    output: logits `[B, V]` or `[B, N, V]` float32, or LinearLogits, or an
      Embedding.
    target: the teacher's output, or None; one of another kind is ignored.
    mask: bool, the leading axes of the output, true where it counts.
    labels: as in `Batch`, or None.
    sizes: of the chunks in which LinearLogits are computed.

  Returns:
    `{family: sums}` and `{family: columns}`, for `finish`.
  """
  name = _family(output)
  if target is not None and _family(target) != name:
    target = None
  # Scores cannot be compared with logits.
  if labels is not None and name != 'embeddings' and checks.are_scores(labels):
    labels = None
  family = FAMILIES[name]
  if isinstance(output, base.LinearLogits):
    # Metrics of logits have no columns, and positions do not interact.
    sums = chunks.add_up(
        lambda *logits, **options: family.measure(*logits, **options)[0],
        output, cast(Optional[base.Logits], target), mask=mask, labels=labels,
        sizes=sizes)
    return {name: sums}, {name: {}}
  if isinstance(target, base.LinearLogits):
    target = target.materialise()
  sums, columns = family.measure(output, target, mask=mask, labels=labels)
  return {name: sums}, {name: columns}


def finish(sums: dict[str, Any],
           columns: dict[str, Any]) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: as from `measure`, added up over all batches.
    columns: as from `measure`, the rows of all batches; NumPy.

  Returns:
    `{metric: value}`, NaN where nothing counts.
  """
  values = {}
  for name, family in FAMILIES.items():
    if name in sums:
      values.update(family.finish(sums[name], columns[name]))
  return values


def _family(output):
  if isinstance(output, base.Embedding):
    return 'embeddings'
  return 'classes' if len(output.shape) == 2 else 'tokens'
