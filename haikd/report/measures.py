"""What a report measures on the device, for one network and a batch.

As in `haikd.metrics`, there is a function for each kind of output. It measures
sums, which add up over batches and devices, and columns, which have a row for
every example. Neither grows with a vocabulary.
"""

from collections.abc import Callable
import functools
from typing import Any, Optional

import jax
import jax.numpy as jnp

from haikd import metrics
from haikd.core import base
from haikd.core import checks
from haikd.core import loops
from haikd.core import masking
from haikd.losses import cosines
from haikd.losses import cutting
from haikd.losses import divergences
from haikd.metrics import counts
from haikd.metrics import means

BINS = 15  # Of confidence, as in Guo et al., arXiv:1706.04599.
MAX_OUTPUTS = 16  # Numbers of a regression that are kept for its plot.

Measured = tuple[dict[str, Any], dict[str, Any]]


def measure(output: base.Output, target: Optional[base.Output], *,
            mask: jax.Array, labels: Optional[jax.Array],
            weight: Optional[jax.Array] = None, task: str,
            sizes: cutting.ChunkSizes) -> Measured:
  """Compares a network's output with labels and with the teacher's.

  Args:
    output: of the network.
    target: the teacher's, or None.
    mask: bool, the leading axes of the output, true where it counts.
    labels: as in `Batch`, or None.
    weight: as in `Batch`, or None. Columns do not depend on it.
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
    return _tokens(output, target, mask, labels, weight, sizes)
  both: tuple[Any, ...] = (output, target)
  if not isinstance(output, base.Embedding):
    both = tuple(
        None if x is None else masking.materialise(x, mask).astype(jnp.float32)
        for x in both)
  return _OF_FAMILY[family](*both, mask, labels, weight)


def _classes(logits, target, mask, labels, weight) -> Measured:
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
    sums['bins'] = _add_up(
        _bins, weight, confidence, predicted == truth, labelled)
    if size <= counts.MAX_CLASSES:
      sums['confusion'] = _add_up(
          functools.partial(_confusion, size), weight, predicted, truth,
          labelled)
  if logits.ndim == 2:
    columns.update(predicted=predicted, confidence=confidence)
  if target is not None:
    columns['divergence'] = _mean_of_rows(
        divergences.kl_rows(logits, target), mask)
  return sums, columns


def _multilabel(logits, target, mask, labels, weight) -> Measured:
  """Measures labels that each are true or not."""
  sums: dict[str, Any] = {}
  columns: dict[str, Any] = {}
  if labels is not None:
    true, chance = labels > 0.5, jax.nn.sigmoid(logits)
    keep = jnp.broadcast_to(masking.expand(mask, logits.ndim), logits.shape)
    sums['labels'] = _add_up(counts.count, weight, logits > 0, true, mask)
    sums['bins'] = _add_up(_bins, weight, chance, true, keep)
  if logits.ndim == 2 and logits.shape[-1] <= counts.MAX_CLASSES:
    columns['chosen'] = logits > 0
  if target is not None:
    error = jax.nn.sigmoid(logits) - jax.nn.sigmoid(target)
    columns['divergence'] = _mean_of_rows(
        jnp.mean(jnp.abs(error), axis=-1), mask)
  return sums, columns


def _values(output, target, mask, labels, weight) -> Measured:
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


def _embeddings(output, target, mask, labels, weight) -> Measured:
  """Measures vectors of texts."""
  vectors = output.vectors
  columns: dict[str, Any] = {}
  if target is not None and target.vectors.shape == vectors.shape:
    cosine = cosines.similarity(vectors, target.vectors)
    columns['cosine'] = _mean_of_rows(cosine, mask)
    columns['divergence'] = 1 - columns['cosine']
  are_pairs = vectors.ndim == 3 and vectors.shape[1] == 2
  if are_pairs and not isinstance(output, base.TokenEmbedding):
    columns['similarity'] = cosines.similarity(vectors[:, 0], vectors[:, 1])
    if labels is not None and checks.are_scores(labels):
      columns['score'] = labels.astype(jnp.float32)
  return {}, columns


_OF_FAMILY: dict[str, Callable[..., Measured]] = dict(
    classes=_classes, multilabel=_multilabel, values=_values,
    embeddings=_embeddings)


def _tokens(logits, target, mask, labels, weight, sizes) -> Measured:
  """Measures a language model, position by position."""
  mask = jnp.broadcast_to(
      masking.expand(mask, len(logits.shape) - 1), logits.shape[:-1])

  def values(logits, target):
    found = dict(predicted=jnp.argmax(logits, axis=-1),
                 confidence=jnp.max(jax.nn.softmax(logits), axis=-1))
    if target is not None:
      found['kl'] = divergences.kl_rows(logits, target)
    return found

  columns = _at_each_position(values, logits, target, mask, sizes)
  sums = {}
  if labels is not None:
    sums['bins'] = _add_up(
        _bins, weight, columns['confidence'], columns['predicted'] == labels,
        mask & (labels >= 0))
  columns['counts'] = mask
  if target is not None:
    columns['divergence'] = _mean_of_rows(columns['kl'], mask)
  return sums, columns


def _at_each_position(function, logits, target, mask, sizes):
  """Calls `(logits, target)` in chunks of positions.

  Args:
    function: returns `{name: [R]}` for logits `[R, V]`, float32.
    logits: `[B, N, V]`, an array or lazy.
    target: likewise, or None.
    mask: bool `[B, N]`, the positions to visit.
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

  def array(logits):
    if isinstance(logits, base.LinearLogits):
      logits = logits.materialise()
    return None if logits is None else logits.astype(jnp.float32)

  call = lambda chunk: function(*map(array, map(chunk.of, sides)))

  def body(number, total):
    chunk = cut.chunk(number)
    return jax.tree.map(
        lambda x, rows: x.at[chunk.positions].set(
            rows, mode='drop', unique_indices=True), total, call(chunk))

  shapes = jax.eval_shape(lambda: call(cut.chunk(jnp.int32(0))))
  zeros = jax.tree.map(lambda x: jnp.zeros(mask.size, x.dtype), shapes)
  return jax.tree.map(
      lambda x: x.reshape(mask.shape), cut.loop(body, zeros))


def _add_up(function, weight, *rows):
  """Returns the sums of a function of rows, each row's times its weight.

  Args:
    function: `(*rows) -> sums`.
    weight: float32 `[B]`; None for 1.
    *rows: arrays `[B, ...]`.
  """
  if weight is None:
    return function(*rows)

  # One row at a time: confusion matrices of all may take gigabytes.
  def add(total, row):
    weight, *row = row
    sums = function(*(x[None] for x in row))
    return jax.tree.map(lambda x, y: x + weight * y, total, sums), ()

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape),
                       jax.eval_shape(function, *rows))
  return loops.scan_parts(add, zeros, (weight, *rows))[0]


def _confusion(size, predicted, truth, mask):
  """Returns how many places there are, int32 `[true class, predicted]`."""
  cell = jnp.where(mask, truth, 0) * size + predicted
  # Integers: float32 stops counting at 2^24.
  counted = jnp.zeros(size * size, jnp.int32).at[cell.ravel()].add(
      mask.ravel().astype(jnp.int32))
  return counted.reshape(size, size)


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

  def one(i):
    inside = mask & (number == i)
    # A sum, and not a scatter, which adds one by one and rounds each time.
    total = jnp.sum(jnp.where(inside, confidence, 0))
    return jnp.stack([jnp.sum(inside), total, jnp.sum(inside & hits)])

  return jax.lax.map(one, jnp.arange(BINS))


def _mean_of_rows(values, mask):
  """Returns the mean of each example over its positions that count."""
  mask = jnp.broadcast_to(masking.expand(mask, values.ndim), values.shape)
  axes = tuple(range(1, values.ndim))
  total = jnp.sum(masking.clean(values, mask), axis=axes)
  return total / jnp.maximum(jnp.sum(mask, axis=axes), 1)
