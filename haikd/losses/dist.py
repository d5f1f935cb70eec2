"""DIST: correlations of predictions, in each row and in each class."""

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import masking
from haikd.losses import cosines
from haikd.losses import divergences
from haikd.losses import register

# Of the sum of squares: deviations below it are rounding errors.
_CONSTANT = 1e-12


@register.register_loss(
    on='logits', example=dict(student=(2, 3, 5), mask=(2, 3)), relational=True)
def dist(student: jax.Array,
         teacher: jax.Array,
         *,
         mask: jax.Array,
         beta: float = 1.0,
         gamma: float = 1.0,
         temperature: float = 1.0) -> base.LossSum:
  """One less the correlation of probabilities, by row and by class, times T^2.

  With r Pearson's correlation of the teacher's and the student's softmax at
  temperature T, it is beta times the mean of 1 - r over positions, each over
  its classes, plus gamma times the mean of 1 - r over classes, each over the
  batch's positions. It asks for the teacher's ranking, not its probabilities,
  which a much smaller student cannot reach. Correlations do not shrink as T
  grows; the factor T^2 is that of torchdistill and MMRazor.

  Not additive over `B`: it relates positions of the whole batch. With
  microbatches, it is computed for each of them. Its logits are materialised.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    beta: weight of the correlations in each row, 0 or more.
    gamma: weight of the correlations in each class, 0 or more.
    temperature: T, positive; the logits of both networks are divided by it.

  Returns:
    A LossSum: T^2 times the loss, multiplied by the number of positions that
    count, and this number. A row or class in which either side is constant has
    no correlation: it adds 0.

  Raises:
    ValueError: a weight is negative, `temperature` is not positive, V is 1, or
      shapes differ.

  References:
    Huang et al., Knowledge Distillation from A Stronger Teacher,
    arXiv:2205.10536, the inter-class and intra-class relations. The authors'
    code adds 1e-8 to the divisor; a constant row or class then adds 1.
  """
  for name, weight in dict(beta=beta, gamma=gamma).items():
    if isinstance(weight, (int, float)) and not weight >= 0:
      raise ValueError(f'{name} must be 0 or more; got {weight}. 0 leaves its '
                       'part out.')
  keep = jnp.broadcast_to(
      masking.expand(mask, student.ndim - 1), student.shape[:-1]).reshape(-1)

  def rows(student, teacher):
    p, q = (jax.nn.softmax(x).reshape(-1, x.shape[-1])
            for x in (teacher, student))
    by_row = _distance(q, p, jnp.ones(q.shape[-1], bool))
    q, p = (masking.clean(x, keep).T for x in (q, p))
    by_class = jnp.mean(_distance(q, p, keep))
    return (beta * by_row + gamma * by_class).reshape(student.shape[:-1])

  return divergences.softened(
      rows, student, teacher, mask=mask, temperature=temperature)


def _distance(student, teacher, keep):
  """Returns 1 - r of each row of `[R, S]`; keep `[S]` says what counts."""
  return cosines.distance(*(_deviations(x, keep) for x in (student, teacher)))


def _deviations(rows, keep):
  """Returns each row less its mean; zeros if all of it is rounding."""
  mean = jnp.sum(rows, axis=-1, keepdims=True) / jnp.maximum(jnp.sum(keep), 1)
  deviations = jnp.where(keep, rows - mean, 0.0)
  squares, all_squares = (
      jnp.sum(jnp.square(x), axis=-1, keepdims=True)
      for x in (deviations, rows))
  return jnp.where(squares > _CONSTANT * all_squares, deviations, 0.0)
