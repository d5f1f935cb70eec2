"""What a term compares, before alignment: the student's and the teacher's.

Here, and only here, the teacher's gradient is stopped.
"""

import math
from typing import Any, Optional

import jax
import jax.numpy as jnp

from haikd import attention
from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.core import recorded
from haikd.network import network as network_lib
from haikd.objective import aligning
from haikd.objective import terms as terms_lib

EMBEDDING = 'embedding'  # The tap that has a vector for each text.
# ((student layer, the teacher layers whose mean it learns from), …).
Layers = tuple[tuple[int, tuple[int, ...]], ...]


def logits_pair(term: terms_lib.Term, student: network_lib.NetworkOutput,
                teacher: Optional[network_lib.NetworkOutput],
                batch: base.Batch) -> base.Pair:
  """Returns the pair of a term on logits.

  Args:
    term: a term of the objective.
    student: the student's output for the batch. Its logits, and the teacher's,
      are returned as they are: lazy, or materialised.
    teacher: the teacher's output, or None if the term needs none.
    batch: the batch.

  Returns:
    A pair; its teacher is None for a term that needs no teacher.

  Raises:
    ConfigError: a network that returned an Embedding.
  """
  logits = _logits_of('student', student)
  target = None
  if term.needs_teacher:
    target = jax.lax.stop_gradient(_logits_of('teacher', teacher))
  return base.Pair(logits, target, target_mask(batch, logits))


def tap_pairs(term: terms_lib.Term, layers: Layers,
              student: network_lib.NetworkOutput,
              teacher: Optional[network_lib.NetworkOutput], batch: base.Batch,
              form: terms_lib.Form) -> list[base.Pair]:
  """Returns the pairs of a term on taps, one for each of its student layers.

  Args:
    term: a term of the objective.
    layers: which student layer goes with which teacher layers; the mean of the
      latter is taken.
    student: the student's output for the batch.
    teacher: the teacher's output, or None if the term needs none.
    batch: the batch.
    form: BLOCKS leaves lazy maps lazy, as `attention.MeanMaps`.

  Returns:
    Pairs; the teacher's is None for a term that needs no teacher.

  Raises:
    ConfigError: a tap that holds something else than one array, or one with
      positions where the networks have different tokens.
  """
  def pairs_of(kind):
    return _pairs_of(kind, layers, student, teacher, batch, form,
                     term.needs_teacher)

  if isinstance(term.entry.on, str):
    return pairs_of(term.entry.on)
  by_kind = {kind: pairs_of(kind) for kind in term.entry.kinds}
  return [aligning.together(dict(zip(by_kind, pairs)))
          for pairs in zip(*by_kind.values())]


def _pairs_of(kind, layers, student, teacher, batch, form, needs_teacher):
  """Returns the pairs of one tap."""
  result = []
  of_student, of_teacher = (batch.view(x).mask for x in ('student', 'teacher'))
  for index, group in layers:
    value = _captured('student', student, kind, index)
    mask = tap_mask(of_student, value, kind)
    targets = []
    if needs_teacher:
      targets = [_captured('teacher', teacher, kind, j) for j in group]
      if have_own_tokens(batch):
        check_no_positions(kind, value, of_student)
        for target in targets:
          check_no_positions(kind, target, of_teacher)
    target = None
    if form is terms_lib.Form.BLOCKS and _are_lazy_maps(value, targets):
      value = _mean_maps([value])
      if targets:
        target = jax.lax.stop_gradient(_mean_maps(targets))
    else:
      value = _materialise(value, mask)
      if targets:
        target = _mean_target(targets, mask)
    result.append(base.Pair(value, target, mask))
  return result


def with_logits(output: network_lib.NetworkOutput,
                batch: base.Batch) -> network_lib.NetworkOutput:
  """Returns an output with its logits, if any, materialised."""
  if output.logits is None or isinstance(output.logits, recorded.TARGETS):
    return output
  mask = target_mask(batch, output.logits)
  return output._replace(logits=masking.materialise(output.logits, mask))


def target_mask(batch: base.Batch, logits: base.Output) -> jax.Array:
  """Returns where logits, or vectors, count: bool, their leading axes."""
  if isinstance(logits, base.Embedding):
    return _reduced(batch.mask, logits.vectors.ndim - 1)
  mask = batch.mask if batch.target_mask is None else batch.target_mask
  if isinstance(logits, base.LinearLogits):
    logits = logits.hidden
  return _reduced(mask, logits.ndim - 1)


def tap_mask(mask: jax.Array, value: Any, kind: str) -> jax.Array:
  """Returns where a captured value counts.

  A vector for a text counts where any position of the text does. If a network
  has laid several texts of an example one after the other, each text has one
  row of the mask.

  Args:
    mask: of the batch: bool, `[B]`, `[B, N]` or `[B, S, N]`.
    value: what was captured.
    kind: of the tap.

  Returns:
    A bool mask: `mask` itself, where its shape begins that of the value.
  """
  if isinstance(value, (base.QueryKey, base.LinearLogits)):
    value = value[0]  # Query or hidden, which has the axes of the positions.
  shape = jnp.shape(value)
  texts = math.prod(mask.shape[:-1])
  is_flat = shape[:1] == (texts,) and shape[:mask.ndim] != mask.shape
  if mask.ndim > 2 and is_flat and (kind != EMBEDDING or
                                    texts != mask.shape[0]):
    mask = mask.reshape(texts, -1)
  # An embedding's D may equal N by chance, so that only its rank decides.
  if kind == EMBEDDING or shape[:mask.ndim] != mask.shape:
    return _reduced(mask, len(shape) - 1)
  return mask


def have_own_tokens(batch: base.Batch) -> bool:
  """Returns whether a position is another one for the student.

  That is so for texts in its own tokens, but not for images in its own size or
  scaling, beside which nothing is its own.
  """
  if batch.student is None:
    return False
  inputs = batch.inputs
  return 'image' not in inputs if isinstance(inputs, dict) else (
      len(inputs.shape) != 4)


def check_no_positions(kind: str, value: Any, mask: jax.Array) -> None:
  """Refuses values with positions, if each network has its own tokens.

  Args:
    kind: what the value is, for the message: 'logits', or the kind of a tap.
    value: of one network.
    mask: of that network's view of the batch.

  Raises:
    ConfigError: the value has more than one vector for each text.
  """
  if isinstance(value, (base.QueryKey, base.LinearLogits, base.Embedding)):
    value = value[0]
  # Several texts of an example may have been laid one after the other.
  is_flat = mask.ndim > 2 and value.shape[0] != mask.shape[0]
  text_axes = 1 if is_flat else mask.ndim - 1
  if len(value.shape) > text_axes + 1:
    raise checks.ConfigError(
        f'{kind} must be one vector for each text, since teacher and student '
        'have a tokenizer each and a position holds different tokens; got '
        f'shape={value.shape}. Compare embeddings, or choose a student with '
        "the teacher's tokenizer.")


def _reduced(mask, rank):
  """Returns a mask of at most `rank` axes, true where any of the others is."""
  surplus = tuple(range(rank, mask.ndim))
  return mask.any(axis=surplus) if surplus else mask


def _logits_of(side, output):
  """Returns the logits of the student or of the teacher."""
  if isinstance(output.logits, base.Embedding):
    raise checks.ConfigError(
        f'config.{side} must return logits for a loss on logits; got an '
        'Embedding. Set config.distillation.alpha = None, and add losses on '
        "'embedding' to config.losses.")
  return output.logits


def _captured(side, output, kind, index):
  """Returns what a tap holds: an array, or lazy logits or maps."""
  value = output.taps[kind][index]
  if not isinstance(
      value, (jax.Array, base.QueryKey, base.LinearLogits)):
    raise checks.ConfigError(
        f'config.{side}.taps.{kind} must match modules that return one array; '
        f'got {type(value).__name__}. Narrow the glob, or offer the array with '
        'haikd.tap.')
  return value


def _are_lazy_maps(value, targets):
  """Returns whether all are lazy maps, those of the teacher of one shape."""
  return (all(isinstance(x, base.QueryKey) for x in (value, *targets)) and
          len({x.shape for x in targets}) <= 1)


def _mean_maps(values):
  return attention.MeanMaps(tuple(values), values[0].shape[1])


def _mean_target(values, mask):
  """Returns the mean of the teacher's layers as a constant."""
  values = [_materialise(value, mask) for value in values]
  if len(values) > 1:
    values = [sum(x.astype(jnp.float32) for x in values) / len(values)]
  return jax.lax.stop_gradient(values[0])


def _materialise(value, mask):
  if isinstance(value, base.QueryKey):
    # Uses the network's own q and k unmasked so that XLA shares the computation
    # (CSE). Masking here would not protect gradients: a NaN has already passed
    # through the network's attention.
    value = value.materialise()
  return masking.materialise(value, mask)
