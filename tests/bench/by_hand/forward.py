"""The forward passes of student and teacher, and a product each for logits."""

from by_hand import attention
from by_hand import networks
import jax
import jax.numpy as jnp


def build(case, arrays):
  """Returns what `by_hand.build` says; nothing is measured of the logits."""
  part = lambda name: {
      key.partition(':')[2]: jnp.asarray(value)
      for key, value in arrays.items() if key.partition(':')[0] == name}
  batch = part('batch')
  mask = batch['mask']

  def attend(query, key, value):
    return attention.blocks(query, key, value, mask, True)[0]

  def passes(state, student, teacher, batch):
    total = 0.0
    for side, params in (('student', student), ('teacher', teacher)):
      model, options = case[side]
      output = networks.NETWORKS[model](params, {}, batch, attend, **options)
      total += jnp.sum(output.hidden @ output.kernel)
    return state, dict(loss=total)

  return jax.jit(passes), (), (part('student'), part('teacher'), batch)
