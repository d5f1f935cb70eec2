"""Attention transfer in blocks against maps that are whole, in plain JAX.

  taskset -c 0 python tests/bench/attention_blocks.py [--lengths 256 1024 2048]

A teacher of 8 heads and a student of 4, all of size 64, causal, float32. The
form by hand computes both maps, pools heads, and takes the cosine of rows, as
a formula under `jax.value_and_grad` with respect to the student's queries and
keys. Beside it stands attention itself, forward and with its backward pass.

Both run in turn, A B A B, in one process. Printed are the medians of the ratios
of CPU time with their ranges, and the ratio of temporary memory; of the form in
blocks also milliseconds and MiB, and both compile times in seconds.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import haikd
from haikd import attention
from haikd.core import attention_mask
from haikd.core import base

HEADS, POOLED, SIZE = 8, 4, 64


def draw(batch, length, heads, count):
  rng = np.random.default_rng(heads)
  shape = (count, batch, length, heads, SIZE)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def maps_by_hand(query, key, mask):
  scores = jnp.einsum('bnhk,bmhk->bhnm', query, key)
  allowed = jnp.tri(query.shape[1], dtype=bool) & mask[:, None, None, :]
  scores = jnp.where(allowed, scores, -1e9)
  top = jnp.max(scores, -1, keepdims=True)
  weights = jnp.where(allowed, jnp.exp(scores - top), 0)
  total = jnp.sum(weights, -1, keepdims=True)
  return weights / jnp.where(total > 0, total, 1)


def transfer_by_hand(query, key, teacher_query, teacher_key, mask):
  student = maps_by_hand(query, key, mask)
  teacher = maps_by_hand(teacher_query, teacher_key, mask)
  batch, _, length, _ = teacher.shape
  teacher = teacher.reshape(batch, POOLED, -1, length, length).mean(2)
  product = jnp.sum(student * teacher, -1)
  squares = jnp.sum(student**2, -1) * jnp.sum(teacher**2, -1)
  cosine = product / jnp.sqrt(jnp.where(squares > 0, squares, 1))
  return jnp.sum((1 - cosine) * (mask[:, None, :] & (squares > 0)))


def transfer_in_blocks(query, key, teacher_query, teacher_key, mask):
  allowed = attention_mask.AttentionMask(mask, causal=True)
  student, teacher = (
      attention.MeanMaps((base.QueryKey(*x, allowed),), POOLED)
      for x in ((query, key), (teacher_query, teacher_key)))
  return haikd.losses.attention_transfer(student, teacher, mask=mask).total


def attend_by_hand(query, key, value, mask):
  maps = maps_by_hand(query, key, mask)
  return jnp.einsum('bhnm,bmhk->bnhk', maps, value)


def attend_in_blocks(query, key, value, mask):
  allowed = attention_mask.AttentionMask(mask, causal=True)
  return attention.attend(base.QueryKey(query, key, allowed), value)


def compiled(function, arguments):
  start = time.process_time()
  found = jax.jit(function).lower(*arguments).compile()
  seconds = time.process_time() - start
  jax.block_until_ready(found(*arguments))
  return found, found.memory_analysis().temp_size_in_bytes, seconds


def measure(function, arguments, at_least=0.2):
  start, runs = time.process_time(), 0
  while time.process_time() - start < at_least:
    jax.block_until_ready(function(*arguments))
    runs += 1
  return (time.process_time() - start) / runs


def compare(title, in_blocks, by_hand, arguments, rounds):
  own, own_memory, own_seconds = compiled(in_blocks, arguments)
  other, other_memory, other_seconds = compiled(by_hand, arguments)
  for x, y in zip(jax.tree.leaves(own(*arguments)),
                  jax.tree.leaves(other(*arguments))):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
  ratios, times = [], []
  for _ in range(rounds):
    times.append(measure(own, arguments))
    ratios.append(times[-1] / measure(other, arguments))
  print(f'{title:44} time {statistics.median(ratios):.3f} ({min(ratios):.3f}-'
        f'{max(ratios):.3f}) memory {own_memory / other_memory:.3f}; '
        f'{1e3 * statistics.median(times):.1f} ms, {own_memory / 2**20:.1f} MiB'
        f', compile {own_seconds:.1f} against {other_seconds:.1f} s',
        flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--lengths', type=int, nargs='*',
                      default=[256, 1024, 2048])
  parser.add_argument('--batch', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--alone', action='store_true',
                      help='compile and run the form in blocks only')
  args = parser.parse_args()
  for length in args.lengths:
    for part in (1.0, 0.75):
      mask = jnp.broadcast_to(
          jnp.arange(length) < part * length, (args.batch, length))
      sides = (*draw(args.batch, length, POOLED, 2) * SIZE**-0.25,
               *draw(args.batch, length, HEADS, 2) * SIZE**-0.25)
      gradient = lambda f: jax.value_and_grad(f, argnums=(0, 1))
      title = f'N {length}, {part:.0%} real: '
      if args.alone:
        own, memory, _ = compiled(
            gradient(transfer_in_blocks), (*sides, mask))
        seconds = measure(own, (*sides, mask))
        print(f'{title} transfer {seconds:.2f} s, {memory / 2**20:.1f} MiB',
              flush=True)
        continue
      compare(f'{title}transfer', gradient(transfer_in_blocks),
              gradient(transfer_by_hand), (*sides, mask), args.rounds)
      for heads in (4, 8):
        sides = *draw(args.batch, length, heads, 3) * SIZE**-0.25, mask
        # What a padded query gives is not to be used.
        seen = lambda f: lambda *x: jnp.where(mask[..., None, None], f(*x), 0)
        compare(f'{title}attention of {heads}', seen(attend_in_blocks),
                seen(attend_by_hand), sides, args.rounds)
        back = lambda f: jax.value_and_grad(
            lambda *x: jnp.sum(jnp.sin(seen(f)(*x))), argnums=(0, 1, 2))
        compare(f'{title}attention of {heads} and gradient',
                back(attend_in_blocks), back(attend_by_hand), sides,
                args.rounds)


if __name__ == '__main__':
  main()
