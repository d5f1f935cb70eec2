"""Losses on logits: with the logits whole, or a chunk of them at a time."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import optax

_HELD = 2**21  # Logits of a chunk, of either network.


def whole(logits, teacher, mask, labels, temperature, alpha):
  """Returns the soft and the hard loss, weighted and added.

  Args:
    logits: `[R, V]`.
    teacher: likewise.
    mask: bool, `[R]`.
    labels: int32, `[R]`, -100 for none.
    temperature: of the soft loss.
    alpha: weight of the soft loss.
  """
  log_p = jax.nn.log_softmax(teacher / temperature)
  log_q = jax.nn.log_softmax(logits / temperature)
  soft = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
  soft = jnp.where(mask, soft, 0).sum() / mask.sum() * temperature**2
  labelled = mask & (labels >= 0)
  hard = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.maximum(labels, 0))
  hard = jnp.where(labelled, hard, 0).sum() / labelled.sum()
  return alpha * soft + (1 - alpha) * hard


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def chunked(hidden, kernel, teacher, mask, labels, temperature, alpha):
  """Is `whole` of `hidden @ kernel`, with one chunk of logits at a time.

  Args:
    hidden: `[R, D]`.
    kernel: `[D, V]`.
    teacher: the teacher's hidden and kernel; they get no gradient.
    mask: bool, `[R]`.
    labels: int32, `[R]`, -100 for none.
    temperature: of the soft loss.
    alpha: weight of the soft loss.
  """
  return _forward(hidden, kernel, teacher, mask, labels, temperature, alpha)[0]


def _forward(hidden, kernel, teacher, mask, labels, temperature, alpha):
  """Returns the loss and, computed on the way, its gradient."""
  rows = len(hidden)
  size = min(rows, max(64, _HELD // kernel.shape[1]))
  order = jnp.argsort(~mask, stable=True)
  # The last chunk may reach beyond the end.
  order = jnp.pad(order, (0, -rows % size))
  valid = mask.sum()
  labelled = (mask & (labels >= 0)).sum()
  soft_weight = alpha * temperature / valid
  hard_weight = (1 - alpha) / labelled

  def body(i, carry):
    loss, to_hidden, to_kernel = carry
    index = lax.dynamic_slice_in_dim(order, i * size, size)
    counts = i * size + jnp.arange(size) < valid
    h, label = hidden[index], labels[index]
    s, t = h @ kernel, teacher[0][index] @ teacher[1]
    s -= s.max(-1, keepdims=True)
    t -= t.max(-1, keepdims=True)
    one, soft, target = jnp.exp(s), jnp.exp(s / temperature), jnp.exp(
        t / temperature)
    sums = [x.sum(-1, keepdims=True) for x in (one, soft, target)]
    log_sums = [jnp.log(x) for x in sums]
    q, p = soft / sums[1], target / sums[2]
    kl = (p * ((t - s) / temperature)).sum(-1) - (log_sums[2] -
                                                  log_sums[1])[:, 0]
    picked = jnp.take_along_axis(s, jnp.maximum(label, 0)[:, None], 1)[:, 0]
    has_label = counts & (label >= 0)
    loss += temperature * soft_weight * jnp.where(counts, kl, 0).sum()
    loss += hard_weight * jnp.where(has_label, log_sums[0][:, 0] - picked,
                                    0).sum()
    hot = label[:, None] == jnp.arange(kernel.shape[1])
    change = jnp.where(counts, soft_weight, 0)[:, None] * (q - p)
    change += jnp.where(has_label, hard_weight, 0)[:, None] * (
        one / sums[0] - hot)
    # Rows that count not are gathered twice, but have a gradient of 0.
    to_hidden = to_hidden.at[index].add(change @ kernel.T)
    return loss, to_hidden, to_kernel + h.T @ change

  loss, *gradient = lax.fori_loop(
      0, (valid + size - 1) // size, body,
      (jnp.float32(0), jnp.zeros_like(hidden), jnp.zeros_like(kernel)))
  return loss, tuple(gradient)


def _backward(temperature, alpha, gradient, change):
  del temperature, alpha
  return (*(change * x for x in gradient), None, None, None)


chunked.defvjp(_forward, _backward)
