"""Losses on logits in chunks, against the same on whole ones.

  python tests/bench/logit_chunks.py
  taskset -c 0 python tests/bench/logit_chunks.py --classes 65536 --padding 0

KL at T = 2 and cross-entropy of 8 x 256 positions, widths 512 and 256: value
and gradient with respect to the student's hidden states and kernel, and nothing
else. Whole are the same losses, and a formula in plain JAX that is faster than
they are: it keeps fewer digits where both sides agree. Printed are, for each,
ratios of CPU time, the median over rounds with the range, and of the memory
that the compiled function needs beside arguments and results.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from haikd import losses
from haikd.core import base
from haikd.losses import chunks

BATCH, LENGTH, STUDENT, TEACHER = 8, 256, 256, 512
T, ALPHA = 2.0, 0.9


def make(classes, padding):
  """Returns hidden states and kernels of both sides, a mask, labels."""
  rng = np.random.default_rng(0)

  def side(width):
    hidden = rng.normal(size=(BATCH, LENGTH, width))
    kernel = rng.normal(size=(width, classes)) / np.sqrt(width)
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(kernel, jnp.float32)

  lengths = LENGTH * (1 - padding) * np.linspace(0.8, 1.2, BATCH)
  lengths = np.minimum(np.round(lengths if padding else LENGTH), LENGTH)
  mask = np.broadcast_to(
      np.arange(LENGTH) < np.reshape(lengths, (-1, 1)), (BATCH, LENGTH))
  labels = rng.integers(0, classes, (BATCH, LENGTH))
  return side(STUDENT), side(TEACHER), jnp.asarray(mask), jnp.asarray(labels)


def by_hand(student, teacher, mask, labels):
  logits = lambda side: (side[0].reshape(-1, side[0].shape[-1]) @ side[1])
  s, t = logits(student), logits(teacher)
  log_p, log_q = jax.nn.log_softmax(t / T), jax.nn.log_softmax(s / T)
  soft = T**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
  picked = jnp.take_along_axis(
      jax.nn.log_softmax(s), labels.reshape(-1, 1), -1)[:, 0]
  rows = ALPHA * soft - (1 - ALPHA) * picked
  return jnp.sum(jnp.where(mask.reshape(-1), rows, 0.0)) / jnp.sum(mask)


def whole(student, teacher, mask, labels):
  student, teacher = (hidden @ kernel for hidden, kernel in (student, teacher))
  soft = losses.kl_divergence(student, teacher, mask=mask, temperature=T)
  hard = losses.cross_entropy(student, mask=mask, labels=labels)
  return (ALPHA * soft.total + (1 - ALPHA) * hard.total) / jnp.sum(mask)


def in_chunks(student, teacher, mask, labels):

  def soft(student, teacher, *, mask, labels):
    del labels
    return losses.kl_divergence(student, teacher, mask=mask, temperature=T)

  def hard(student, teacher, *, mask, labels):
    del teacher
    return losses.cross_entropy(student, mask=mask, labels=labels)

  value, _ = chunks.weighted(
      (soft, hard), jnp.array([ALPHA, 1 - ALPHA]) / jnp.sum(mask),
      base.LinearLogits(*student), base.LinearLogits(*teacher), mask=mask,
      labels=labels)
  return value


def measure(compiled, arguments):
  begin = time.process_time()
  jax.block_until_ready(compiled(*arguments))
  return time.process_time() - begin


def compare(classes, padding, rounds):
  arguments = make(classes, padding)
  forms = (in_chunks, whole, by_hand)
  forms = [jax.jit(jax.value_and_grad(form)).lower(*arguments).compile()
           for form in forms]
  expected = forms[2](*arguments)
  for form in forms[:2]:
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(y)))),
        form(*arguments), expected)
  seconds = np.array([[measure(form, arguments) for form in forms]
                      for _ in range(rounds)])
  memory = [form.memory_analysis().temp_size_in_bytes for form in forms]
  print(f'{classes:,} classes, {padding:.0%} padding: '
        f'{statistics.median(seconds[:, 0]):.2f} s, '
        f'{memory[0] / 2**20:.0f} MiB')
  for number, name in ((1, 'whole'), (2, 'by hand')):
    ratios = seconds[:, 0] / seconds[:, number]
    print(f'  of {name:8} time {statistics.median(ratios):.3f} '
          f'({min(ratios):.3f}-{max(ratios):.3f}), memory '
          f'{memory[0] / memory[number]:.1%} of '
          f'{memory[number] / 2**20:.0f} MiB', flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--classes', type=int, nargs='+',
                      default=[8192, 65_536, 151_936])
  parser.add_argument('--padding', type=float, nargs='+', default=[0.25, 0.0])
  flags = parser.parse_args()
  for classes in flags.classes:
    for padding in flags.padding:
      compare(classes, padding, flags.rounds)


if __name__ == '__main__':
  main()
