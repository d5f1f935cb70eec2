"""The networks by hand: `(params, state, batch, attend, **options)`.

`params` is one flat dict, `{'module/name': array}`; `attend` maps the query,
key and value of each layer in turn, `[B, N, H, K]`, to its outputs.
"""

from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np


class Output(NamedTuple):
  """What a network gives.

  Attributes:
    logits: `[B, V]`, or None.
    hidden: `[B N, D]` with the `kernel` to logits, or None.
    kernel: `[D, V]`, or None.
    features: of each block, `[B N, D]`.
    state: moving means, `{'module/name': array}`.
  """

  logits: Optional[jax.Array]
  hidden: Optional[jax.Array]
  kernel: Optional[jax.Array]
  features: list[jax.Array]
  state: dict[str, Any]


def llama(params, state, batch, attend, *, width, depth, heads, hidden):
  """A decoder of the Llama family."""
  del hidden
  tokens = batch['inputs']
  rows, length = tokens.shape
  size = width // heads
  turns = np.arange(length)[:, None] * 10000.0**(
      -np.arange(0, size, 2) / size)
  cosine, sine = (
      np.float32(f(turns))[None, :, None, :] for f in (np.cos, np.sin))

  def rotate(x):
    real, imaginary = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([real * cosine - imaginary * sine,
                            real * sine + imaginary * cosine], axis=-1)

  def norm(x, name):
    square = jnp.mean(x**2, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(square + 1e-5) * params[f'{name}/scale']

  features = []
  x = params['embed/embeddings'][tokens.reshape(-1)]
  for i in range(depth):
    linear = lambda x, name, i=i: x @ params[f'block_{i}/{name}/w']
    h = norm(x, f'block_{i}/norm_attn')
    query, key, value = (
        linear(h, f'attn/{name}').reshape(rows, length, heads, size)
        for name in ('query', 'key', 'value'))
    outputs = attend(rotate(query) * size**-0.5, rotate(key), value)
    x += linear(outputs.reshape(-1, width), 'attn/output')
    h = norm(x, f'block_{i}/norm_mlp')
    gate = jax.nn.silu(linear(h, 'mlp/gate'))
    x += linear(gate * linear(h, 'mlp/up'), 'mlp/down')
    features.append(x)
  return Output(None, norm(x, 'norm'), params['logits/w'], features, state)


def vit(params, state, batch, attend, *, width, depth, heads, patch_size,
        **options):
  """A vision transformer whose logits are read from the mean position."""
  del options
  images = batch['inputs']
  rows, height, _, channels = images.shape
  side, area = height // patch_size, patch_size**2 * channels

  def linear(x, name):
    return x @ params[f'{name}/w'] + params[f'{name}/b']

  def norm(x, name):
    x -= jnp.mean(x, axis=-1, keepdims=True)
    square = jnp.mean(x**2, axis=-1, keepdims=True)
    x *= jax.lax.rsqrt(square + 1e-6)
    return x * params[f'{name}/scale'] + params[f'{name}/offset']

  patches = images.reshape(rows, side, patch_size, side, patch_size, channels)
  patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, area)
  x = linear(patches, 'embed/patches').reshape(rows, side**2, width)
  x = (x + params['embed/positions']).reshape(-1, width)
  features = []
  for i in range(depth):
    name = f'block_{i}'
    h = norm(x, f'{name}/norm_attn')
    query, key, value = (
        linear(h, f'{name}/attn/{part}').reshape(rows, side**2, heads, -1)
        for part in ('query', 'key', 'value'))
    outputs = attend(query * (width // heads)**-0.5, key, value)
    x += linear(outputs.reshape(-1, width), f'{name}/attn/output')
    h = linear(norm(x, f'{name}/norm_mlp'), f'{name}/mlp/up')
    x += linear(jax.nn.gelu(h, approximate=False), f'{name}/mlp/down')
    features.append(x)
  pooled = norm(x, 'norm').reshape(rows, side**2, width).mean(axis=1)
  return Output(linear(pooled, 'logits'), None, None, features, state)


def mlp(params, state, batch, attend, *, hidden):
  """Linear layers with ReLU between them."""
  del attend
  x = batch['inputs'].reshape(len(batch['inputs']), -1)
  for i in range(len(hidden)):
    name = f'hidden_{i}/linear'
    x = jax.nn.relu(x @ params[f'{name}/w'] + params[f'{name}/b'])
  logits = x @ params['logits/w'] + params['logits/b']
  return Output(logits, None, None, [], state)


def convnet(params, state, batch, attend, *, channels, is_training):
  """Stages of a 3x3 convolution, batch norm, ReLU and pooling by two."""
  del attend
  x, state = batch['inputs'], dict(state)
  for i in range(len(channels)):
    name = f'stage_{i}'
    x = jax.lax.conv_general_dilated(
        x, params[f'{name}/conv/w'], (1, 1), 'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    if is_training:
      mean = x.mean(axis=(0, 1, 2))
      variance = (x**2).mean(axis=(0, 1, 2)) - mean**2
      for part, value in (('mean', mean), ('var', variance)):
        moving = f'{name}/norm/~/{part}_ema'
        kept = 0.9 * state[f'{moving}/hidden'] + 0.1 * value
        count = state[f'{moving}/counter'] + 1
        state[f'{moving}/hidden'], state[f'{moving}/counter'] = kept, count
        state[f'{moving}/average'] = kept / (1 - 0.9**count)
    else:
      mean, variance = (state[f'{name}/norm/~/{part}_ema/average']
                        for part in ('mean', 'var'))
    scale = jax.lax.rsqrt(variance + 1e-5) * params[f'{name}/norm/scale']
    x = jax.nn.relu((x - mean) * scale + params[f'{name}/norm/offset'])
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1),
                              (1, 2, 2, 1), 'VALID')
  logits = x.mean(axis=(1, 2)) @ params['logits/w'] + params['logits/b']
  return Output(logits, None, None, [], state)


def hidden(params, state, batch, attend, *, rows, width):
  """Nothing but hidden states and the kernel to logits."""
  del batch, attend, rows
  states = params['~/hidden'].reshape(-1, width)
  return Output(None, states, params['~/kernel'], [], state)


def maps(params, state, batch, attend, *, rows, heads, head_size):
  """Nothing but queries and keys of one layer."""
  del batch, rows, heads, head_size
  attend(params['~/query'], params['~/key'], params['~/key'])
  return Output(None, None, None, [], state)


NETWORKS = {
    'llama': llama,
    'vit': vit,
    'mlp': mlp,
    'convnet': convnet,
    'bench/hidden': hidden,
    'bench/maps': maps,
}
