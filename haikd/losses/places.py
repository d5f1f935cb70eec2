"""Losses on feature maps: which places and channels are active together."""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from haikd.core import area_weights
from haikd.core import base
from haikd.core import masking
from haikd.losses import cosines
from haikd.losses import groups
from haikd.losses import register

_EXAMPLE = dict(student=(2, 3, 5), mask=(2, 3))


@register.register_loss(on='features', example=_EXAMPLE, any_width=True)
def activation_attention(student: jax.Array, teacher: jax.Array, *,
                         mask: jax.Array, power: float = 2.0) -> base.LossSum:
  """Distance of the networks' maps of where they are active.

  The activation of a place is Σ_c |A_c|^p over its channels. The maps of both
  networks are divided by their lengths; the loss is the length of their
  difference. Networks may have different numbers of channels.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, ..., D]` floating, with at least one axis of places.
    teacher: `[B, ..., E]` floating.
    mask: bool, `[B]` or any leading axes of `student`, true where a place
      counts. Others are not active.
    power: p, at least 1; large values weigh the most active channels.

  Returns:
    A LossSum: the distances (unitless, 0 to √2) summed over examples, and
    their number. Equal maps get no gradient, nor does a map of zeros.

  Raises:
    ValueError: shapes differ in more than the width, there are no places, or
      `power` is below 1.

  References:
    Zagoruyko and Komodakis, Paying More Attention to Attention,
    arXiv:1612.03928, equation 2 without β/2. The authors' code takes the mean
    of the squared difference instead; torchdistill has both.
  """
  if isinstance(power, (int, float)) and not power >= 1:
    raise ValueError(f'power must be at least 1; got {power}. Try 2.')
  _check_places(student)

  def attention(features):
    size = jnp.abs(features)
    # The derivative of a power has a logarithm, infinite at 0.
    active = size > 0
    powers = jnp.where(active, jnp.where(active, size, 1.0)**power, 0.0)
    return cosines.directions(groups.flat(powers.sum(axis=-1)))[0]

  distances = cosines.lengths(attention(student) - attention(teacher))
  return masking.masked_mean(distances, groups.examples(mask))


@register.register_loss(on='features', example=_EXAMPLE, any_width=True)
def neuron_selectivity(student: jax.Array, teacher: jax.Array, *,
                       mask: jax.Array) -> base.LossSum:
  """Squared maximum mean discrepancy of the channels' patterns over places.

  Each channel is one sample: its activations over places, divided by their
  length. With the kernel k(x, y) = (x·y)², the loss is the mean k(t, t') + mean
  k(s, s') − 2 mean k(s, t) over the channels. It transfers which patterns
  channels respond to, whatever their number and order.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, ..., D]` floating, with at least one axis of places.
    teacher: `[B, ..., E]` floating.
    mask: bool, `[B]` or any leading axes of `student`, true where a place
      counts. Others are not active.

  Returns:
    A LossSum: the discrepancies (unitless, 0 to 2) summed over examples, and
    their number.

  Raises:
    ValueError: shapes differ in more than the width, or there are no places.

  References:
    Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity
    Transfer, arXiv:1707.01219, with the polynomial kernel, d = 2 and c = 0.
  """
  _check_places(student)

  def patterns(features):
    # (x·y)² is the product of x xᵀ and y yᵀ, so the means over channels are
    # products of the matrices' means, and their difference is never negative.
    channels = features.reshape(features.shape[0], -1, features.shape[-1])
    channels = cosines.directions(jnp.swapaxes(channels, 1, 2))[0]
    return jnp.einsum('bcn,bcm->bnm', channels, channels,
                      precision=lax.Precision.HIGHEST) / channels.shape[1]

  error = jnp.square(patterns(student) - patterns(teacher)).sum(axis=(1, 2))
  return masking.masked_mean(error, groups.examples(mask))


@register.register_loss(
    on=('flow_start', 'flow_end'), example=dict(student=(2, 3, 5), mask=(2, 3)))
def flow_of_procedure(student: dict[str, jax.Array],
                      teacher: dict[str, jax.Array], *,
                      mask: jax.Array) -> base.LossSum:
  """Squared error of the products of an early and a late layer's channels.

  The flow G of an example is the mean over places of the outer product of the
  two layers' channels. It transfers how one layer's features become another's,
  in place of the features themselves. The taps `flow_start` and `flow_end` name
  the layers; both must have the same places.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `{'flow_start': [B, ..., D], 'flow_end': [B, ..., E]}` floating.
    teacher: likewise, of the same shapes.
    mask: bool, `[B]` or any leading axes of the taps except the last, true
      where a place counts.

  Returns:
    A LossSum: ‖G_student − G_teacher‖² summed over examples, and their number.

  Raises:
    ValueError: shapes differ, or the two layers have different places.

  References:
    Yim et al., A Gift from Knowledge Distillation, CVPR 2017, equation 1 of
    section 3.2 and equation 2 of section 3.3. The paper pools the larger layer
    by maxima. RepDistiller averages over the entries of G in place of their
    sum; torchdistill adds the lengths of G's columns, not squared.
  """
  start, end = (student[kind].shape for kind in ('flow_start', 'flow_end'))
  if start[:-1] != end[:-1]:
    raise ValueError(
        'flow_start and flow_end must have the same places; got '
        f'{start} and {end}. Tap two layers of one resolution.')
  # Of each example; a mask of examples has all places.
  real = jnp.broadcast_to(masking.expand(mask, len(start) - 1), start[:-1])
  real = groups.flat(real)
  number = jnp.sum(real, axis=-1)

  def flow(taps):
    first, second = (
        x.reshape(*real.shape, x.shape[-1])
        for x in (taps['flow_start'], taps['flow_end']))
    products = jnp.einsum('bnd,bne->bde', first, second,
                          precision=lax.Precision.HIGHEST)
    return products / jnp.maximum(number, 1)[:, None, None]

  error = jnp.square(flow(student) - flow(teacher)).sum(axis=(1, 2))
  return masking.masked_mean(error, number > 0)


@register.register_loss(
    on='features', example=dict(student=(2, 2, 3, 2), mask=(2,)))
def hierarchical_context(student: jax.Array, teacher: jax.Array, *,
                         mask: jax.Array,
                         levels: Sequence[int] = (4, 2, 1)) -> base.LossSum:
  """Mean squared errors of maps and of what they are when pooled.

  The maps are averaged down to each level of l by l places, so that what holds
  of whole regions is compared beside what holds of places. The error of the
  maps weighs 1, that of the next level 1/2, then 1/4, and so on, divided by the
  sum of these weights. Levels that are not smaller than the map are left out.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, h, w, D]` floating, in the networks' units.
    teacher: like `student`.
    mask: bool, `[B]` or any leading axes of `student` except the last, true
      where a place counts. Others are in no mean.
    levels: the sides l of the pooled maps, which fall.

  Returns:
    A LossSum: the errors, means over places and features, summed over examples,
    and their number.

  Raises:
    ValueError: shapes differ, there are no maps, or `levels` do not fall.

  References:
    Chen et al., Distilling Knowledge via Knowledge Review, arXiv:2104.09044,
    section 3.3, the hierarchical context loss, with the levels and weights of
    the authors' code. Where a side does not divide by l, that code lets
    neighbouring means overlap; here each place weighs the same.
  """
  if student.ndim != 4:
    raise ValueError(
        'student and teacher must be maps, [B, h, w, D]; got student.shape='
        f'{student.shape}. Tap layers of maps, or use feature_matching.')
  sides = [int(level) for level in levels]
  if sides != sorted(set(sides), reverse=True) or min(sides, default=1) < 1:
    raise ValueError(f'levels must fall, to 1 or more; got {tuple(levels)}.')
  real = jnp.broadcast_to(masking.expand(mask, 3), student.shape[:3])
  error = student - teacher  # Pooling is linear.

  def mean_square(error, share):
    squares = jnp.sum(jnp.square(error), axis=(1, 2, 3))
    count = jnp.sum(share > 0, axis=(1, 2)) * error.shape[-1]
    return squares / jnp.maximum(count, 1)

  share = real.astype(jnp.float32)
  value, weight, total = mean_square(error, share), 1.0, 1.0
  height, width = real.shape[1:]
  for side in sides:
    if side >= max(height, width):
      continue
    rows, columns = (
        jnp.asarray(area_weights.weights(size, min(side, size)), jnp.float32)
        for size in (height, width))
    pool = functools.partial(jnp.einsum, 'bhw...,hi,wj->bij...',
                             precision=lax.Precision.HIGHEST)
    part = pool(share, rows, columns)
    pooled = pool(error, rows, columns) / jnp.where(part > 0, part, 1)[
        ..., None]
    weight /= 2
    value += weight * mean_square(pooled, part)
    total += weight
  return masking.masked_mean(value / total, groups.examples(mask))


def _check_places(student: jax.Array) -> None:
  if student.ndim < 3:
    raise ValueError(
        'student and teacher must have places, [B, ..., D]; got student.shape='
        f'{student.shape}. Tap a layer before it is pooled.')
