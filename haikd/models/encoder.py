"""What text encoders share: how they read rows, and their heads."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import haiku as hk
import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.core import tap as tap_lib
from haikd.core import transposed
from haikd.models import layers
from haikd.models import sequences
from haikd.models import transformer

HEADS = ('embedding', 'classification', 'masked_lm')
POOLS = ('mean', 'token', 'last_token', 'max', 'mean_sqrt')
TAPS = dict(features='block*', attention='attn/maps', embedding='embedding',
            token_embedding='token_embedding')
UNPOOLED = 'none'  # A vector for each token.
# The keys of an entry of the option `dense`, with their defaults.
_DENSE = dict(size=None, activation=None, bias=True, normalise=False)


class Unembed(hk.Module):
  """Maps positions to lazy logits, with the token embeddings as kernel."""

  def __init__(self, *, with_bias: bool = True):
    super().__init__(name='logits')
    self.with_bias = with_bias

  def __call__(self, hidden: jax.Array, table: jax.Array) -> base.LinearLogits:
    """Maps `[..., D]` and `[V, D]` to `[..., V]`."""
    bias = None
    if self.with_bias:
      bias = hk.get_parameter('b', table.shape[:1], init=jnp.zeros)
    return base.LinearLogits(hidden, transposed.Transposed(table), bias)


def read(
    inputs: Any, mask: Optional[jax.Array]
) -> tuple[sequences.Sequence, tuple[int, ...]]:
  """Flattens all axes before the last into one axis of rows.

  Args:
    inputs: tokens, `[..., N]`, or a dict of such columns; see `sequences.read`.
    mask: bool, of the shape of tokens or of their first axes; None if all
      positions are real.

  Returns:
    The rows, and the axes that were flattened.

  Raises:
    TypeError: as `sequences.read`.
    ValueError: as `sequences.read`.
  """
  columns = inputs if isinstance(inputs, Mapping) else dict(tokens=inputs)
  tokens = columns.get('tokens')
  if tokens is None or tokens.ndim < 2:
    return sequences.read(inputs, mask), ()  # Raises: inputs are no rows.
  mask = layers.position_mask(mask, tokens)
  rows = lambda x: x.reshape(-1, x.shape[-1])
  columns = jax.tree.map(rows, dict(columns))
  return sequences.read(columns, rows(mask)), tokens.shape[:-1]


def check_one_text(sequence: sequences.Sequence, head: str) -> None:
  """Raises ValueError if rows hold several texts and the head reads one."""
  if sequence.segments is not None and head != 'masked_lm':
    raise ValueError(
        f'rows must hold one text each for head={head!r}; got segments, which '
        'mark rows packed with several. Choose a data set of padded rows.')


def task(head: str = 'embedding') -> Optional[str]:
  """Returns what an encoder predicts, as `register_model` takes it.

  Args:
    head: one of HEADS; any other is refused when the network is built.
  """
  return head if head in HEADS else None


def check_head(*, head: str, num_classes: Optional[int]) -> int:
  """Returns the number of classes of a head; 0 for one without classes.

  Raises:
    ConfigError: the head is not known, or its classes are missing.
  """
  layers.check_choice('head', head, HEADS)
  if head != 'classification':
    return 0
  if num_classes is None:
    raise checks.ConfigError(
        f'num_classes must be given with head={head!r}; got None.')
  layers.check_positive(num_classes=num_classes)
  return num_classes


def check_pooling(*, pool: str, dense: Sequence[Mapping[str, Any]],
                  head: str = 'embedding') -> None:
  """Raises ConfigError unless the options of text vectors are valid."""
  pools = (*POOLS, UNPOOLED) if head == 'embedding' else POOLS
  layers.check_choice('pool', pool, pools)
  for i, entry in enumerate(dense):
    is_mapping = isinstance(entry, Mapping)
    if not is_mapping or 'size' not in entry or not set(entry) <= set(_DENSE):
      raise checks.ConfigError(
          f'dense[{i}] must be a dict of size and any of '
          f'{", ".join(list(_DENSE)[1:])}; got {entry!r}.')
    layers.check_positive(**{f'dense[{i}].size': entry['size']})
    if entry.get('activation') is not None:
      layers.activation(f'dense[{i}].activation', entry['activation'])


def embedding(features: jax.Array, mask: jax.Array, leading: tuple[int, ...],
              *, pool: str, dense: Sequence[Mapping[str, Any]],
              normalise: bool) -> base.Embedding:
  """Returns a vector for each text, also offered as the tap `embedding`.

  Args:
    features: `[B, N, D]` floating.
    mask: bool, `[B, N]`, true where a position is real.
    leading: the axes that B is flattened from.
    pool: one of POOLS; or UNPOOLED for a vector for each token, which is
      offered as the tap `token_embedding`.
    dense: the layers after pooling, valid by `check_pooling`.
    normalise: whether the vectors have length 1.

  Returns:
    An Embedding, `[*leading, D]` float32; 0 for rows of padding alone, if no
    layer has a bias. Unpooled, a TokenEmbedding, `[*leading, N, D]`.
  """
  is_pooled = pool != UNPOOLED
  vectors = pooled(features, mask, pool) if is_pooled else features
  vectors = vectors.astype(jnp.float32)
  for i, entry in enumerate(dense):
    entry = {**_DENSE, **entry}
    if entry['normalise']:
      vectors = _unit(vectors)
    linear = layers.Linear(
        entry['size'], name=f'dense_{i}', with_bias=entry['bias'])
    vectors = linear(vectors)
    if entry['activation'] is not None:
      vectors = layers.activation('activation', entry['activation'])(vectors)
  vectors = _unit(vectors) if normalise else vectors
  if not is_pooled:
    vectors = masking.clean(vectors, mask)
    vectors = vectors.reshape(*leading, *vectors.shape[1:])
    return base.TokenEmbedding(tap_lib.tap('token_embedding', vectors))
  vectors = vectors.reshape(*leading, vectors.shape[-1])
  return base.Embedding(tap_lib.tap('embedding', vectors))


def pooled(features: jax.Array, mask: jax.Array, pool: str) -> jax.Array:
  """Returns a vector for each row, `[B, D]`.

  Args:
    features: `[B, N, D]` floating.
    mask: bool, `[B, N]`, true where a position is real.
    pool: 'token' for the first real position, 'last_token' for the last one,
      'max' for the maximum of each feature, 'mean', or 'mean_sqrt' for the sum
      over the root of the number of positions. Only real ones count.
  """
  if pool in ('token', 'last_token'):
    # The first maximum, from the left or from the right.
    index = (jnp.argmax(mask, axis=1) if pool == 'token' else
             mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1))
    return jnp.take_along_axis(features, index[:, None, None], axis=1)[:, 0]
  real = mask[..., None]
  if pool == 'max':
    highest = jnp.max(features, axis=1, where=real, initial=-jnp.inf)
    return jnp.where(mask.any(axis=1, keepdims=True), highest, 0)
  total = jnp.sum(features, axis=1, where=real, dtype=jnp.float32)
  count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
  return total / (jnp.sqrt(count) if pool == 'mean_sqrt' else count)


def transform(features: jax.Array, activation: layers.Activation,
              epsilon: float, *, with_bias: bool = True,
              offset: bool = True) -> jax.Array:
  """Maps `[..., D]` to the same before logits: linear, activated, normalised.

  Args:
    features: `[..., D]` floating.
    activation: of the linear map.
    epsilon: added to the variance in the norm.
    with_bias: whether the linear map has a bias.
    offset: whether the norm has an offset.
  """
  linear = layers.Linear(
      features.shape[-1], name='transform', with_bias=with_bias)
  return transformer.layer_norm(
      activation(linear(features)), epsilon, 'transform_norm', offset=offset)


def _unit(vectors: jax.Array) -> jax.Array:
  # The maximum is inside the root: the gradient of a root at 0 is infinite.
  squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
