"""A multilayer perceptron."""

from collections.abc import Sequence

import haiku as hk
import jax

from haikd.core import registry
from haikd.models import layers


class Hidden(hk.Module):
  """A linear layer and its activation."""

  def __init__(self, size: int, activation: layers.Activation, name: str):
    super().__init__(name=name)
    self.size = size
    self.activation = activation

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[B, D]` to `[B, size]`."""
    return self.activation(layers.Linear(self.size, name='linear')(inputs))


@registry.register_model(
    taps=dict(features='hidden_*'), task='classification')
def mlp(inputs: jax.Array,
        *,
        is_training: bool,
        num_classes: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = 'relu',
        dropout: float = 0.0) -> jax.Array:
  """A multilayer perceptron on flattened inputs.

  Each hidden layer is a module `hidden_i`. Its captured output, `[B, D_i]`,
  is taken after the activation and before dropout.

  Args:
    inputs: `[B, ...]` floating; the axes after the first are flattened.
    is_training: whether dropout is active, which takes a random key.
    num_classes: V.
    hidden: the sizes D_i of the hidden layers.
    activation: a name from `layers.ACTIVATIONS`.
    dropout: rate at which hidden units are dropped in training.

  Returns:
    Logits, `[B, V]` in the dtype of `inputs`. Examples do not interact.

  Raises:
    ConfigError: an invalid option; the message gives the rule.
    TypeError: `inputs` is not floating point.
  """
  layers.check_real(inputs)
  layers.check_positive(num_classes=num_classes)
  layers.check_sizes('hidden', hidden)
  layers.check_fraction(dropout=dropout)
  function = layers.activation('activation', activation)
  outputs = inputs.reshape(inputs.shape[0], -1)
  for i, size in enumerate(hidden):
    outputs = Hidden(size, function, name=f'hidden_{i}')(outputs)
    outputs = layers.dropout(outputs, dropout, is_training)
  return layers.Linear(num_classes, name='logits')(outputs)
