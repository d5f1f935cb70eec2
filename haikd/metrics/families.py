"""Chooses metrics by the kind of a network's output and of its labels.

A family of metrics measures on the device, batch by batch, and finishes on the
host, after the last batch. It measures sums, which add up over batches and
devices, and columns, which have a row for every example.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast, NamedTuple, Optional
import warnings

import jax
import numpy as np

from haikd.core import base
from haikd.core import tasks
from haikd.core import weighting
from haikd.losses import chunks
from haikd.losses import cutting
from haikd.metrics import classes
from haikd.metrics import embeddings
from haikd.metrics import means
from haikd.metrics import multilabel
from haikd.metrics import own as own_lib
from haikd.metrics import tokens
from haikd.metrics import values

_OWN = 'own'  # Beside the families: metrics of the user's own.
# By family: sums are pytrees of arrays, columns pytrees of arrays [B, ...].
Measured = tuple[dict[str, Any], dict[str, Any]]


class Family(NamedTuple):
  """The metrics of one kind of output and labels.

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
                         ('embeddings', embeddings), ('values', values),
                         ('multilabel', multilabel))
}


def measure(output: base.Output,
            target: Optional[base.Output],
            *,
            mask: jax.Array,
            labels: Optional[jax.Array] = None,
            weight: Optional[jax.Array] = None,
            task: str = tasks.CLASSIFICATION,
            own: Sequence[own_lib.Own] = (),
            sizes: cutting.ChunkSizes = cutting.ChunkSizes()) -> Measured:
  """Compares a network's output with labels and with a teacher's output.

  Sums are additive over `B`.

  Args:
    output: logits or predictions `[B, V]` or `[B, N, V]` float32, or
      LinearLogits, or an Embedding.
    target: the teacher's output, or None; one of another kind or shape is
      ignored, but for Embeddings of another width, whose scores are compared.
      Metrics of the user's own get none then.
    mask: bool, the leading axes of the output, true where it counts.
    labels: as in `Batch`, or None.
    weight: as in `Batch`, or None. Correlations do not depend on it.
    task: what the labels are, one of `tasks.OF_LABELS`. An Embedding needs
      none.
    own: metrics of the user's own.
    sizes: of the chunks in which LinearLogits are computed.

  Returns:
    `{family: sums}` and `{family: columns}`, for `finish`.
  """
  name = family_of(output, task)
  if target is not None and not are_comparable(output, target):
    target = None
  family = FAMILIES[name]
  if name == 'values' and isinstance(output, base.LinearLogits):
    output = output.materialise()
  if (isinstance(target, base.LinearLogits) and
      not isinstance(output, base.LinearLogits)):
    target = target.materialise()
  is_as_wide = target is None or _array(output).shape == _array(target).shape
  kept = own_lib.columns_of(
      own, _array(output), _array(target) if is_as_wide else None, mask=mask,
      labels=labels, weight=weight)
  kept = {_OWN: kept} if kept else {}

  def add_up(output, target, *, mask, labels):
    sums, columns = family.measure(output, target, mask=mask, labels=labels)
    measured = {name: sums}
    if own:
      measured[_OWN] = own_lib.add_up(
          own, _array(output), _array(target) if is_as_wide else None,
          mask=mask, labels=labels)
    return measured, columns

  if isinstance(output, base.LinearLogits):
    # Metrics of logits have no columns, and positions do not interact.
    sums = chunks.add_up(
        lambda *logits, **options: add_up(*logits, **options)[0],
        output, cast(Optional[base.Logits], target), mask=mask, labels=labels,
        weight=weight, sizes=sizes)
    return sums, {name: {}, **kept}
  sums, columns = add_up(output, target, mask=mask, labels=labels)
  if weight is not None:
    sums = weighting.add_up(
        lambda output, target, mask, labels: add_up(
            output, target, mask=mask, labels=labels)[0],
        weight, output, target, mask, labels)
    if columns:
      columns = {**columns, means.WEIGHT: weight}
  return sums, {name: columns, **kept}


def _array(output):
  """Returns the vectors of an Embedding, and any other output as it is."""
  return output.vectors if isinstance(output, base.Embedding) else output


def are_comparable(output: base.Output, target: base.Output) -> bool:
  """Returns whether two outputs are of one kind and shape.

  The width of an Embedding does not count, since scores can be compared.
  """
  if isinstance(output, base.Embedding) or isinstance(target, base.Embedding):
    return type(output) is type(target) and (
        _array(output).shape[:-1] == _array(target).shape[:-1])
  return output.shape == target.shape


def family_of(output: base.Output, task: str) -> str:
  """Returns the name of the family that measures an output.

  Args:
    output: of a network; shapes are enough.
    task: what the labels are, one of `tasks.OF_LABELS`.

  Returns:
    'classes', 'tokens', 'embeddings', 'values' or 'multilabel'.
  """
  if isinstance(output, base.Embedding):
    return 'embeddings'
  if task == tasks.REGRESSION:
    return 'values'
  if task == tasks.MULTILABEL:
    return 'multilabel'
  has_tokens = len(output.shape) == 3 and task not in (
      tasks.TAGGING, tasks.DENSE)
  return 'tokens' if has_tokens else 'classes'


def finish(sums: dict[str, Any], columns: dict[str, Any],
           own: Sequence[own_lib.Own] = ()) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: as from `measure`, added up over all batches.
    columns: as from `measure`, the rows of all batches; NumPy.
    own: metrics of the user's own, as for `measure`.

  Returns:
    `{metric: value}`, NaN where nothing counts.
  """
  finished = {}
  for name, family in FAMILIES.items():
    if name in sums:
      finished.update(family.finish(sums[name], columns[name]))
  finished.update(
      own_lib.finish(own, sums.get(_OWN, {}), columns.get(_OWN, {})))
  return finished


def names(sums: dict[str, Any], columns: dict[str, Any],
          own: Sequence[own_lib.Own] = ()) -> list[str]:
  """Returns the names of the metrics that `finish` makes of such a split.

  Args:
    sums: as from `measure`; shapes and dtypes are enough.
    columns: likewise.
    own: metrics of the user's own, as for `measure`.
  """
  kept = columns.get(_OWN, {})
  columns = {**columns, _OWN: {}}
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), (sums, columns))
  with np.errstate(all='ignore'), warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Nothing counts, or varies.
    return sorted((*finish(*zeros), *own_lib.names_of_whole(own, kept)))
