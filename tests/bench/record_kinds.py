"""What each kind of record takes, and how far its gradient is off.

  python tests/bench/record_kinds.py --gguf=FILE --text=data/austen

The teacher is a language model, the student a part of its layers. For each kind
the gradient of all parameters of the student is compared with that of the live
teacher, for single tokens and summed over more of them: |g' - g| / |g|, the
root mean square over groups of tokens. Needs about 4 GB and 5 minutes.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from haikd import config as config_lib
from haikd.engine import mesh as mesh_lib
from haikd.run import resolve
from haikd.run import trainees
from haikd.teacher_records import hidden
from haikd.teacher_records import packing
from haikd.teacher_records import sampled
from haikd.teacher_records import top_k

LENGTH, ROWS, SINGLE = 288, 4, 24
GROUPS = (72, 288, 1152)


def build(gguf, text):
  """Returns the trainee of the job, with a batch of its texts."""
  config = config_lib.base()
  config.batch_size = config.evaluation.batch_size = ROWS
  config.data.name, config.data.source_dir = 'text', text
  config.data.options = dict(length=LENGTH)
  config.teacher.init = config.student.init = f'gguf:{gguf}'
  config.student.init_layers = (0, 1)
  config.distillation.temperature = 1.0
  config = resolve.from_pretrained(config)
  return trainees.build(config, mesh_lib.build_mesh(config.mesh))


def dense(ids, weights, classes):
  """Returns estimates as arrays, `[P, V]` float32."""
  total = np.zeros((len(ids), classes), np.float32)
  np.add.at(total, (np.arange(len(ids))[:, None], ids), weights)
  return total


def of_sampled(codec, logits, rng):
  arrays = in_parts(codec, logits, rng.random((len(logits), 1), np.float32))
  content = codec.encode(arrays, 0)
  decoded = codec.decode(content, len(logits))
  return len(content), dense(decoded.ids, decoded.weights, codec.classes)


def in_parts(codec, values, uniform, rows=96):
  make = jax.jit(codec.make)
  parts = [jax.device_get(make(values[i:i + rows], uniform[i:i + rows]))
           for i in range(0, len(values), rows)]
  return {name: np.concatenate([part[name] for part in parts])
          for name in parts[0]}


def kinds(logits, lazy, p, q, rng):
  """Yields (name, bytes a token, q - p' or what stands for it, `[P, V]`)."""
  count, classes = p.shape
  for exact, draws, bits in ((8, 64, 16), (16, 16, 16), (16, 32, 16),
                             (16, 32, 8), (8, 64, 8)):
    size, estimate = of_sampled(
        sampled.Codec(classes, exact, draws, bits, 1.0), logits, rng)
    yield (f'sampled {exact} + {draws}, {bits} bits', size / count,
           q - estimate)
  codec = top_k.Codec(classes, 50, 8, 1.0)
  arrays = in_parts(codec, logits, np.zeros((count, 1), np.float32))
  content = codec.encode(arrays, 0)
  decoded = codec.decode(content, count)
  log_probs = np.concatenate(
      [decoded.log_probs, decoded.rest[:, None]], axis=-1)
  kept = np.exp(log_probs - np.log(np.exp(log_probs).sum(-1, keepdims=True)))
  at = dense(decoded.ids, np.ones(decoded.ids.shape), classes) > 0
  top = dense(decoded.ids, kept[:, :-1], classes)
  rest = np.where(at, 0, q)
  spread = rest / rest.sum(-1, keepdims=True) * kept[:, -1:]
  size = len(content) / count
  yield 'top 50 and a bucket, 8 bits', size, q - top - spread
  mass = top.sum(-1, keepdims=True)
  yield 'top 50, the rest zero', size, mass * q - top
  chosen = np.where(at, q, 0)
  yield ('top 50, both sides renormalised', size,
         chosen / chosen.sum(-1, keepdims=True) - top / mass)
  for draws in (50, 64):
    ids = np.stack([rng.choice(classes, draws, p=row / row.sum())
                    for row in p.astype(np.float64)])
    distinct = np.mean([len(set(row)) for row in ids])
    bits = packing.bits_for(classes)
    yield (f'{draws} draws of all (2503.16870)', distinct * (bits / 8 + 1),
           q - dense(ids, np.full(ids.shape, 1 / draws), classes))
  codec = hidden.Codec(lazy.hidden.shape[-1])
  arrays = in_parts(codec, lazy.hidden, np.zeros((count, 1), np.float32))
  content = codec.encode(arrays, 0)
  decoded = codec.decode(content, count)
  again = hidden.rotated(lazy)._replace(
      hidden=decoded.values * decoded.scale[:, None])
  r = np.asarray(jax.nn.softmax(again.materialise()))
  divergence = np.sum(p * (np.log(np.maximum(p, 1e-30)) -
                           np.log(np.maximum(r, 1e-30))), -1)
  print(f'hidden: KL of the reconstruction {divergence.mean():.2e} nats, at '
        f'most {divergence.max():.2e}', flush=True)
  yield 'hidden', len(content) / count, q - r


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--gguf', required=True)
  parser.add_argument('--text', required=True)
  args = parser.parse_args()
  trainee = build(args.gguf, args.text)
  teacher, student = (trainee.start(role).network
                      for role in ('teacher', 'student'))
  objective = trainee.program.objective
  batch = jax.tree.map(jnp.asarray, next(trainee.data.train()))
  lazy = jax.jit(lambda v: objective.teacher.infer(v, batch).logits)(teacher)
  lazy = lazy._replace(hidden=lazy.hidden.reshape(-1, lazy.hidden.shape[-1]))
  p = np.asarray(jax.nn.softmax(lazy.materialise()))
  q = np.asarray(jax.nn.softmax(jax.jit(lambda v: objective.student.infer(
      v, batch).logits.materialise())(student))).reshape(p.shape)

  @jax.jit
  def gradient(params, row, positions, cotangent):
    """Returns the gradient of the student, from that of some logits."""

    def logits_of(params):
      inputs = jax.tree.map(lambda x: x[row][None], batch)
      lazy = objective.student.infer(student._replace(params=params), inputs)
      lazy = lazy.logits._replace(hidden=lazy.logits.hidden[0][positions])
      return lazy.materialise()

    return jax.vjp(logits_of, params)[1](cotangent)[0]

  def run(start, count, cotangent):
    row, first = divmod(start, LENGTH)
    return gradient(student.params, row, first + jnp.arange(count),
                    cotangent[start:start + count])

  singles = np.random.default_rng(1).choice(len(p), SINGLE, replace=False)
  add = jax.jit(lambda x, y: jax.tree.map(jnp.add, x, y))
  norm = jax.jit(lambda x: jnp.sqrt(sum(
      jnp.sum(y**2) for y in jax.tree.leaves(x))))

  def norms(cotangent):
    """Returns the norms of the gradients of single tokens and of groups."""
    found = {1: [norm(run(x, 1, cotangent)) for x in singles]}
    sums = dict.fromkeys(GROUPS)
    for start in range(0, len(p), GROUPS[0]):
      part = run(start, GROUPS[0], cotangent)
      for size in GROUPS:
        sums[size] = part if sums[size] is None else add(sums[size], part)
        if (start + GROUPS[0]) % size == 0:
          found.setdefault(size, []).append(norm(sums[size]))
          sums[size] = None
    return {size: np.array(x) for size, x in found.items()}

  live = norms(q - p)
  print('kind | bytes a token | 1 token | ' +
        ' | '.join(f'{x} tokens' for x in GROUPS), flush=True)
  rng = np.random.default_rng(0)
  for name, size, cotangent in kinds(lazy.materialise(), lazy, p, q, rng):
    off = norms(cotangent - (q - p))
    errors = [np.sqrt(np.mean((off[x] / live[x])**2)) for x in (1, *GROUPS)]
    print(f'{name} | {size:.0f} | ' +
          ' | '.join(f'{x:.3f}' for x in errors), flush=True)


if __name__ == '__main__':
  main()
