"""A user's loss, in a module outside haikd."""

import optax

import haikd


@haikd.register_loss(
    on='features', example=dict(student=(2, 3, 5), mask=(2, 3)))
def huber_features(student, teacher, *, mask, delta=1.0):
  """Huber loss of hidden states: large differences count linearly."""
  error = optax.huber_loss(student, teacher, delta=delta)
  return haikd.masked_mean(error, mask)
