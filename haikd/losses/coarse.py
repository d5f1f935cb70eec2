"""Divergences of predictions whose classes are put together, or left out."""

from typing import Optional

import jax
from jax import lax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.core import recorded
from haikd.losses import divergences
from haikd.losses import labels as labels_lib
from haikd.losses import register

_RESTS = ('bucket', 'renormalise')


def recorded_top_k_kl(student: jax.Array, teacher: recorded.TopK, *,
                      mask: jax.Array, k: int = 3, rest: str = 'bucket',
                      temperature: float = 1.0) -> base.LossSum:
  """Returns `top_k_kl` from records of at least k classes.

  Args:
    student: `[..., V]` float32.
    teacher: recorded at the same temperature.
    mask: as for `top_k_kl`.
    k: likewise; further classes that were recorded are of the rest.
    rest: likewise.
    temperature: likewise.

  Raises:
    TypeError: as `top_k_kl`.
    ValueError: likewise; or k is above that of the records.
  """
  _check_k(k, rest, student.shape[-1])
  if k > teacher.ids.shape[-1]:
    raise ValueError(
        'k must be at most the number of classes that were recorded, '
        f'{teacher.ids.shape[-1]}; got {k}. Record more, or lower it.')

  def rows(student, teacher):
    classes = teacher.ids[..., :k]
    chosen = [jnp.take_along_axis(student, classes, axis=-1),
              teacher.log_probs[..., :k]]
    if rest == 'bucket':
      others = jnp.concatenate(
          [teacher.log_probs[..., k:], teacher.rest[..., None]], axis=-1)
      rests = [rest_logit(student, _at(classes, student)),
               jax.nn.logsumexp(others, axis=-1)]
      chosen = [jnp.concatenate([x, y[..., None]], axis=-1)
                for x, y in zip(chosen, rests)]
    return divergences.kl_rows(*chosen)

  return divergences.softened(
      rows, student, teacher, mask=mask, temperature=temperature)


@register.register_loss(
    on='logits', example=dict(student=(2, 3, 5), mask=(2, 3)), additive=True,
    recorded={recorded.TopK: recorded_top_k_kl})
def top_k_kl(student: jax.Array,
             teacher: jax.Array,
             *,
             mask: jax.Array,
             k: int = 3,
             rest: str = 'bucket',
             temperature: float = 1.0) -> base.LossSum:
  """Divergence on the teacher's k most likely classes, times T^2.

  With rest='bucket' all other classes are one class with their probabilities
  added up, and the loss is KL(p || q) of the two coarse predictions at
  temperature T. It is never negative, at most the full KL, and equal to it at
  k = V: merging classes loses information and adds none. The gradient with
  respect to the student's logits is T (q - p) on the k classes, and T (Q - P)
  q/Q on the others, whose probabilities add up to Q and P.

  With rest='renormalise' the other classes are left out and the k ones are
  divided by their sum, for both: the loss does not see how much probability the
  student gives to the rest.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    k: how many classes are kept, from 1 to V; from 2 for 'renormalise'.
    rest: what becomes of the others, 'bucket' or 'renormalise'.
    temperature: T, positive; the logits of both networks are divided by it.

  Returns:
    A LossSum: T^2 KL in nats summed over positions, and their number.

  Raises:
    TypeError: `k` is no integer.
    ValueError: `k`, `rest` or `temperature` is out of range, V is 1, or shapes
      differ.

  References:
    Peng et al., Pre-training Distillation for Large Language Models: A Design
    Space Exploration, arXiv:2410.16215, which truncates; the log sum inequality
    (Cover and Thomas, Elements of Information Theory, theorem 2.7.1) bounds the
    KL of merged classes.
  """
  _check_k(k, rest, student.shape[-1])

  def rows(student, teacher):
    _, classes = lax.top_k(teacher, k)
    chosen = [jnp.take_along_axis(x, classes, axis=-1)
              for x in (student, teacher)]
    if rest == 'bucket':
      is_chosen = _at(classes, teacher)
      chosen = [
          jnp.concatenate([x, rest_logit(logits, is_chosen)[..., None]], -1)
          for x, logits in zip(chosen, (student, teacher))]
    return divergences.kl_rows(*chosen)

  return divergences.softened(
      rows, student, teacher, mask=mask, temperature=temperature)


@register.register_loss(
    on='logits',
    example=dict(student=(2, 3, 5), mask=(2, 3), labels=(2, 3)),
    additive=True)
def decoupled_kd(student: jax.Array,
                 teacher: jax.Array,
                 *,
                 mask: jax.Array,
                 labels: Optional[jax.Array] = None,
                 alpha: float = 1.0,
                 beta: float = 8.0,
                 temperature: float = 4.0) -> base.LossSum:
  """Divergence on the label and among the other classes, times T^2.

  KL(p || q) is the KL of the two outcomes label and no label, plus the KL among
  the other classes, which the teacher's probability of no label multiplies: a
  sure teacher teaches little of them. Here the two are weighted by alpha and
  beta instead. Both softmaxes are at temperature T.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    labels: integer `[B]` or `[B, N]`, from 0 to V-1, or -100 where a position
      has no label and does not count.
    alpha: weight of the divergence on the label (TCKD), 0 or more.
    beta: weight of the divergence among the others (NCKD), 0 or more.
    temperature: T, positive; the logits of both networks are divided by it.

  Returns:
    A LossSum: T^2 times the divergence in nats summed over labelled positions,
    and their number. The sum is NaN if a label that counts is out of range.

  Raises:
    TypeError: `labels` are not integers.
    ValueError: `labels` are missing or have the wrong shape, a weight is
      negative, `temperature` is not positive, V is 1, or shapes differ.

  References:
    Zhao et al., Decoupled Knowledge Distillation, arXiv:2203.08679; T^2, alpha,
    beta and T as in its authors' code for CIFAR-100, which lets the weight grow
    from 0 over the first 20 epochs.
  """
  for name, weight in dict(alpha=alpha, beta=beta).items():
    if isinstance(weight, (int, float)) and not weight >= 0:
      raise ValueError(f'{name} must be 0 or more; got {weight}. 0 leaves its '
                       'part out.')
  labels = labels_lib.check_given(labels)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError('labels must be integers, a class for each position; got '
                    f'labels.dtype={labels.dtype}. With probabilities use '
                    'kl_divergence.')
  labels, legal, keep = labels_lib.classes(labels, student, mask)

  def rows(student, teacher):
    at_label = labels[..., None] == jnp.arange(student.shape[-1])
    pairs, others = [], []
    for logits in (student, teacher):
      of_label = jnp.sum(jnp.where(at_label, logits, 0.0), axis=-1)
      pairs.append(jnp.stack([of_label, rest_logit(logits, at_label)], -1))
      others.append(jnp.where(at_label, -jnp.inf, logits))
    values = (alpha * divergences.kl_rows(*pairs) +
              beta * divergences.kl_rows(*others))
    return jnp.where(legal, values, jnp.nan)

  return divergences.softened(
      rows, *(masking.clean(x, keep) for x in (student, teacher)), mask=keep,
      temperature=temperature)


@jax.custom_jvp
def rest_logit(logits: jax.Array, is_chosen: jax.Array) -> jax.Array:
  """Returns the logit of all classes that are not chosen, as one class.

  It is summed over these classes. One less the probability of the others,
  log1p(-exp(.)), would lose a small rest to rounding.

  Args:
    logits: `[..., V]` float32.
    is_chosen: bool, likewise.

  Returns:
    `[...]` float32: log sum exp, -inf where every class is chosen.
  """
  return _rest(logits, is_chosen)[0]


@rest_logit.defjvp
def _rest_logit_jvp(primals, tangents):
  logit, probabilities = _rest(*primals)
  return logit, jnp.sum(probabilities * tangents[0], axis=-1)


def _rest(logits, is_chosen):
  """Returns the logit of the rest, and the probabilities within the rest."""
  logits = jnp.where(is_chosen, -jnp.inf, logits)
  largest = jnp.max(logits, axis=-1, keepdims=True)
  largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
  powers = jnp.exp(logits - largest)
  total = jnp.sum(powers, axis=-1, keepdims=True)
  probabilities = powers / jnp.where(total > 0, total, 1.0)
  return (largest + jnp.log(total))[..., 0], probabilities


def _at(classes, logits):
  """Returns a mask `[..., V]` of the classes `[..., k]`."""
  return jnp.put_along_axis(
      jnp.zeros(logits.shape, bool), classes, True, axis=-1, inplace=False)


def _check_k(k, rest, classes):
  if rest not in _RESTS:
    raise ValueError(f'rest must be one of {", ".join(_RESTS)}; got {rest!r}.')
  if not checks.is_number(k) or not isinstance(k, int):
    raise TypeError(f'k must be an integer; got {k!r}. It cannot be scheduled.')
  least = 1 if rest == 'bucket' else 2
  if not least <= k <= classes:
    raise ValueError(
        f'k must lie between {least} and V, the number of classes; got k={k}, '
        f'V={classes}, rest={rest!r}.')
