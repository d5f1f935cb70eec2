"""What a report measures on the device, for one network and a batch.

As in `haikd.metrics`, there is a function for each kind of output. It measures
sums, which add up over batches and devices, and columns, which have a row for
every example. Neither grows with a vocabulary.
"""

from collections.abc import Callable
from typing import Any, Optional

import jax
import jax.numpy as jnp

from haikd import metrics
from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.losses import cosines
from haikd.losses import cutting
from haikd.metrics import counts
from haikd.metrics import means

BINS = 15  # Of confidence, as in Guo et al., arXiv:1706.04599.
MAX_OUTPUTS = 16  # Numbers of a regression that are kept for its plot.

Measured = tuple[dict[str, Any], dict[str, Any]]


def measure(output: base.Output, target: Optional[base.Output], *,
            mask: jax.Array, labels: Optional[jax.Array], task: str,
            sizes: cutting.ChunkSizes) -> Measured:
  """Compares a network's output with labels and with the teacher's.

  Args:
    output: of the network.
    target: the teacher's, or None.
    mask: bool, the leading axes of the output, true where it counts.
    labels: as in `Batch`, or None.
    task: what the labels are, one of `tasks.OF_LABELS`.
    sizes: of the chunks in which lazy logits are computed.

  Returns:
    Sums and columns. Where there is a target, the column `divergence`, `[B]`,
    says how far the network is from it.
  """
  family = metrics.family_of(output, task)
  if target is not None and not metrics.are_comparable(output, target):
    target = None
  if family == 'tokens':
    return _tokens(output, target, mask, labels, sizes)
  both: tuple[Any, ...] = (output, target)
  if not isinstance(output, base.Embedding):
    both = tuple(
        None if x is None else masking.materialise(x, mask).astype(jnp.float32)
        for x in both)
  return _OF_FAMILY[family](*both, mask, labels)


def _classes(logits, target, mask, labels) -> Measured:
  """Measures a classifier of examples or of places."""
  size = logits.shape[-1]
  shape = logits.shape[:-1]
  mask = jnp.broadcast_to(masking.expand(mask, len(shape)), shape)
  predicted = jnp.argmax(logits, axis=-1)
  confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
  sums: dict[str, Any] = {}
  columns: dict[str, Any] = {}
  if labels is not None:
    truth, labelled = means.true_classes(labels, mask)
    sums['bins'] = _bins(confidence, predicted == truth, labelled)
    if size <= counts.MAX_CLASSES:
      cell = jnp.where(labelled, truth, 0) * size + predicted
      sums['confusion'] = jnp.zeros(size * size).at[cell.ravel()].add(
          labelled.ravel()).reshape(size, size)
  if logits.ndim == 2:
    columns.update(predicted=predicted, confidence=confidence)
  if target is not None:
    columns['divergence'] = _mean_of_rows(_kl(logits, target), mask)
  return sums, columns


def _multilabel(logits, target, mask, labels) -> Measured:
  """Measures labels that each are true or not."""
  sums: dict[str, Any] = {}
  columns: dict[str, Any] = {}
  if labels is not None:
    true, chance = labels > 0.5, jax.nn.sigmoid(logits)
    keep = jnp.broadcast_to(masking.expand(mask, logits.ndim), logits.shape)
    sums['labels'] = counts.count(logits > 0, true, mask)
    sums['bins'] = _bins(chance, true, keep)
  if logits.ndim == 2 and logits.shape[-1] <= counts.MAX_CLASSES:
    columns['chosen'] = logits > 0
  if target is not None:
    error = jax.nn.sigmoid(logits) - jax.nn.sigmoid(target)
    columns['divergence'] = _mean_of_rows(
        jnp.mean(jnp.abs(error), axis=-1), mask)
  return sums, columns


def _values(output, target, mask, labels) -> Measured:
  """Measures numbers."""
  columns: dict[str, Any] = {}
  if output.ndim == 2:
    columns['prediction'] = output[:, :MAX_OUTPUTS]
    if labels is not None:
      label = labels.astype(jnp.float32).reshape(output.shape)
      columns['label'] = label[:, :MAX_OUTPUTS]
  if target is not None:
    error = jnp.mean(jnp.square(output - target), axis=-1)
    columns['divergence'] = _mean_of_rows(error, mask)
  return {}, columns


def _embeddings(output, target, mask, labels) -> Measured:
  """Measures vectors of texts."""
  vectors = output.vectors
  columns: dict[str, Any] = {}
  if target is not None:
    cosine = cosines.similarity(vectors, target.vectors)
    columns['cosine'] = _mean_of_rows(cosine, mask)
    columns['divergence'] = 1 - columns['cosine']
  if vectors.ndim == 3 and vectors.shape[1] == 2:
    columns['similarity'] = cosines.similarity(vectors[:, 0], vectors[:, 1])
    if labels is not None and checks.are_scores(labels):
      columns['score'] = labels.astype(jnp.float32)
  return {}, columns


_OF_FAMILY: dict[str, Callable[..., Measured]] = dict(
    classes=_classes, multilabel=_multilabel, values=_values,
    embeddings=_embeddings)


def _tokens(logits, target, mask, labels, sizes) -> Measured:
  """Measures a language model, position by position."""
  mask = jnp.broadcast_to(
      masking.expand(mask, len(logits.shape) - 1), logits.shape[:-1])

  def values(logits, target, labels):
    found = dict(predicted=jnp.argmax(logits, axis=-1),
                 confidence=jnp.max(jax.nn.softmax(logits), axis=-1))
    if labels is not None:
      found['loss'] = -jnp.take_along_axis(
          jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None],
          axis=-1)[..., 0]
    if target is not None:
      found['kl'] = _kl(logits, target)
    return found

  columns = _at_each_position(values, logits, target, mask, labels, sizes)
  sums = {}
  if labels is not None:
    sums['bins'] = _bins(columns['confidence'], columns['predicted'] == labels,
                         mask & (labels >= 0))
  columns['counts'] = mask
  if target is not None:
    columns['divergence'] = _mean_of_rows(columns['kl'], mask)
  return sums, columns


def _at_each_position(function, logits, target, mask, labels, sizes):
  """Calls `(logits, target, labels)` in chunks of positions.

  Args:
    function: returns `{name: [R]}` for logits `[R, V]` and labels `[R]`.
    logits: `[B, N, V]`, an array or lazy.
    target: likewise, or None.
    mask: bool `[B, N]`, the positions to visit.
    labels: `[B, N]`, or None.
    sizes: of the chunks.

  Returns:
    `{name: [B, N]}`, 0 where the mask is false.
  """
  template = logits
  if not isinstance(logits, base.LinearLogits):
    # Only the shapes of the template are used to cut positions.
    template = base.LinearLogits(logits, jnp.zeros((1, logits.shape[-1])))
  cut = cutting.Cut(template, mask, sizes)
  sides = cut.flatten('student', logits), cut.flatten('teacher', target)
  labels = cut.flatten('labels', labels)

  def call(chunk):
    logits = (x.materialise() if isinstance(x, base.LinearLogits) else x
              for x in map(chunk.of, sides))
    return function(*logits, chunk.of(labels))

  def body(number, total):
    chunk = cut.chunk(number)
    return jax.tree.map(
        lambda x, rows: x.at[chunk.positions].set(
            rows, mode='drop', unique_indices=True), total, call(chunk))

  shapes = jax.eval_shape(lambda: call(cut.chunk(jnp.int32(0))))
  zeros = jax.tree.map(lambda x: jnp.zeros(mask.size, x.dtype), shapes)
  return jax.tree.map(
      lambda x: x.reshape(mask.shape), cut.loop(body, zeros))


def _kl(logits, target):
  """Returns KL(teacher || student) in nats, without the last axis."""
  student, teacher = jax.nn.log_softmax(logits), jax.nn.log_softmax(target)
  return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def _bins(confidence, hits, mask):
  """Returns how many values are in each bin of confidence, and their sums.

  Args:
    confidence: floating, from 0 to 1; a bin has its upper end.
    hits: bool, shaped like it.
    mask: bool, shaped like it, true where a value counts.

  Returns:
    float32 `[BINS, 3]`: the count, the sum of confidence, that of hits.
  """
  number = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0,
                    BINS - 1)
  values = jnp.stack([jnp.ones_like(confidence), confidence, hits], axis=-1)
  values = masking.clean(values, mask).reshape(-1, 3)
  return jnp.zeros((BINS, 3)).at[number.ravel()].add(values)


def _mean_of_rows(values, mask):
  """Returns the mean of each example over its positions that count."""
  mask = jnp.broadcast_to(masking.expand(mask, values.ndim), values.shape)
  axes = tuple(range(1, values.ndim))
  total = jnp.sum(masking.clean(values, mask), axis=axes)
  return total / jnp.maximum(jnp.sum(mask, axis=axes), 1)
