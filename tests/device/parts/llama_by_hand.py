"""The large language model's step by hand: plain JAX and optax, bfloat16.

Nothing of haikd is used. Like haikd's step, it loops over the blocks of a
network above twelve, and casts float32 parameters where the step begins.
`materialised` holds all attention maps and logits; `fused` calls
`jax.nn.dot_product_attention`, and takes the logits a chunk at a time with
their gradient computed on the way.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

_STACK = '__layer_stack_no_per_layer/block/'
_CHUNK = 2**26  # Logits of a chunk, of either network.
_ALPHA = 0.9
_WEIGHT = 0.1  # Of features.


def build(size, params, *, fused, features=False, implementation=None):
  """Returns (jitted step of `(state, teacher, batch)`, its state).

  Args:
    size: `language.Sizes`.
    params: of the student, haikd's: `{module: {name: array}}`. Copied.
    fused: which of the two forms.
    features: whether to match those of all layers.
    implementation: of `jax.nn.dot_product_attention`.
  """
  optimizer = optax.adamw(
      optax.cosine_decay_schedule(1e-3, 1000), weight_decay=0.0)

  def loss(params, teacher, batch):
    run = functools.partial(
        _network, tokens=batch.inputs, fused=fused,
        implementation=implementation)
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    target = run(teacher, **size.teacher)
    output = run(cast, **size.student)
    labels = batch.labels.reshape(-1)
    sides = (*output[:2], *map(lax.stop_gradient, target[:2]))
    value = (_chunked if fused else _whole)(*sides, labels)
    if features:
      value += _WEIGHT * _features(output[2], target[2])
    return value

  def step(state, teacher, batch):
    params, opt_state = state
    value, gradient = jax.value_and_grad(loss)(params, teacher, batch)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), value

  params = jax.tree.map(jnp.copy, params)
  return (jax.jit(step, donate_argnums=0), (params, optimizer.init(params)))


def _network(params, *, tokens, fused, implementation, width, depth, heads):
  """Returns hidden states `[R, D]`, the kernel, and features."""
  rows, length = tokens.shape
  size = width // heads
  turns = np.arange(length)[:, None] * 10000.0**(
      -np.arange(0, size, 2) / size)
  cosine, sine = (
      np.float32(f(turns))[None, :, None, :] for f in (np.cos, np.sin))

  def rotate(x):
    real, imaginary = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([real * cosine - imaginary * sine,
                              real * sine + imaginary * cosine], axis=-1)
    return turned.astype(x.dtype)

  def norm(x, scale):
    y = x.astype(jnp.float32)
    square = jnp.mean(y**2, axis=-1, keepdims=True)
    return (y * lax.rsqrt(square + 1e-5) * scale).astype(x.dtype)

  def block(x, part):
    h = norm(x, part['norm_attn']['scale'])
    query, key, value = (
        (h @ part[f'attn/{name}']['w']).reshape(rows, length, heads, size)
        for name in ('query', 'key', 'value'))
    query, key = rotate(query), rotate(key)
    if fused:
      outputs = jax.nn.dot_product_attention(
          query, key, value, is_causal=True, implementation=implementation)
    else:
      outputs = _attend(query, key, value)
    x += outputs.reshape(-1, width) @ part['attn/output']['w']
    h = norm(x, part['norm_mlp']['scale'])
    gate = jax.nn.silu(h @ part['mlp/gate']['w'])
    x += (gate * (h @ part['mlp/up']['w'])) @ part['mlp/down']['w']
    return x, x

  x = params['embed']['embeddings'][tokens.reshape(-1)]
  parts = lambda prefix: {
      name.removeprefix(prefix): value for name, value in params.items()
      if name.startswith(prefix)
  }
  if parts(_STACK):
    x, features = lax.scan(block, x, parts(_STACK))
  else:
    features = []
    for i in range(depth):
      x, one = block(x, parts(f'block_{i}/'))
      features.append(one)
  hidden = norm(x, params['norm']['scale'])
  return hidden, params['logits']['w'], features


def _attend(query, key, value):
  scores = jnp.einsum('bnhk,bmhk->bhnm', query, key,
                      preferred_element_type=jnp.float32)
  scores *= query.shape[-1]**-0.5
  length = query.shape[1]
  maps = jax.nn.softmax(jnp.where(jnp.tri(length, dtype=bool), scores, -1e30))
  return jnp.einsum('bhnm,bmhk->bnhk', maps.astype(value.dtype), value)


def _features(student, teacher):
  """Returns the mean squared error; the teacher's are averaged by groups."""
  total, depth = 0.0, len(student)
  for i, own in enumerate(student):
    target = teacher[round((i + 1) * len(teacher) / depth) - 1]
    target = lax.stop_gradient(target).astype(jnp.float32)
    target = target.reshape(*own.shape, -1).mean(-1)
    total += jnp.mean((own.astype(jnp.float32) - target)**2)
  return total / depth


def _product(hidden, kernel):
  return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)


def _whole(hidden, kernel, teacher, teacher_kernel, labels):
  log_q = jax.nn.log_softmax(_product(hidden, kernel))
  log_p = jax.nn.log_softmax(_product(teacher, teacher_kernel))
  soft = jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))
  picked = jnp.take_along_axis(log_q, jnp.maximum(labels, 0)[:, None], 1)[:, 0]
  has_label = labels >= 0
  hard = -jnp.sum(jnp.where(has_label, picked, 0)) / jnp.sum(has_label)
  return _ALPHA * soft + (1 - _ALPHA) * hard


@jax.custom_vjp
def _chunked(hidden, kernel, teacher, teacher_kernel, labels):
  return _chunked_forward(hidden, kernel, teacher, teacher_kernel, labels)[0]


def _chunked_forward(hidden, kernel, teacher, teacher_kernel, labels):
  rows, classes = len(hidden), kernel.shape[1]
  size = max(min(rows, _CHUNK // classes), 1)
  while rows % size:
    size -= 1
  labelled = jnp.sum(labels >= 0)

  def body(carry, part):
    loss, to_kernel = carry
    h, t, label = part
    log_q = jax.nn.log_softmax(_product(h, kernel))
    log_p = jax.nn.log_softmax(_product(t, teacher_kernel))
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    loss += _ALPHA / rows * jnp.sum(p * (log_p - log_q))
    weight = jnp.where(label >= 0, (1 - _ALPHA) / labelled, 0)
    picked = jnp.take_along_axis(
        log_q, jnp.maximum(label, 0)[:, None], 1)[:, 0]
    loss -= jnp.sum(weight * picked)
    hot = label[:, None] == jnp.arange(classes)
    change = _ALPHA / rows * (q - p) + weight[:, None] * (q - hot)
    change = change.astype(h.dtype)
    to_kernel += _product(h.T, change)
    return (loss, to_kernel), _product(change, kernel.T).astype(h.dtype)

  parts = jax.tree.map(
      lambda x: x.reshape(-1, size, *x.shape[1:]), (hidden, teacher, labels))
  start = jnp.float32(0), jnp.zeros(kernel.shape, jnp.float32)
  (loss, to_kernel), to_hidden = lax.scan(body, start, parts)
  return loss, (to_hidden.reshape(hidden.shape), to_kernel.astype(kernel.dtype))


def _chunked_backward(kept, gradient):
  to_hidden, to_kernel = kept
  scale = lambda x: (gradient * x).astype(x.dtype)
  return scale(to_hidden), scale(to_kernel), None, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
