"""Time of haikd's training step against one written by hand in plain JAX.

  python tests/bench/step_time.py

The hand-written steps know nothing of haikd but the models' forward functions:
one jit, one device, no masks, no microbatches, losses as formulas. Both run in
turn, A B A B, in one process. Printed are the medians of the ratios of wall
time and of CPU time, which a busy machine disturbs less, with their ranges.
"""

import argparse
import statistics
import time

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from haikd import base
from haikd import config as config_lib
from haikd import models
from haikd import placement
from haikd import program as program_lib
from haikd import sharding

BATCH, CLASSES = 128, 10

VIT = dict(patch_size=2, mlp_ratio=2.0, pool='mean')
CASES = {
    'digits, mlp from convnet, logits': (
        (8, 8, 1), ('mlp', dict(hidden=(128, 128))),
        ('convnet', dict(channels=(64, 128))), False),
    'digits, vit from vit, logits': (
        (8, 8, 1), ('vit', dict(VIT, width=32, depth=2, heads=2)),
        ('vit', dict(VIT, width=64, depth=4, heads=4)), False),
    'digits, vit from vit, + features, attention': (
        (8, 8, 1), ('vit', dict(VIT, width=32, depth=2, heads=2)),
        ('vit', dict(VIT, width=64, depth=4, heads=4)), True),
    'fashion, convnet from convnet, logits': (
        (28, 28, 1), ('convnet', dict(channels=(8, 16, 32))),
        ('convnet', dict(channels=(16, 32, 64))), False),
}


def batch_of(shape):
  rng = np.random.RandomState(0)
  return base.Batch(
      inputs=rng.rand(BATCH, *shape).astype(np.float32),
      mask=np.ones(BATCH, bool),
      labels=rng.randint(0, CLASSES, BATCH).astype(np.int32))


def build_haikd(case):
  """Returns (one step of haikd, its student's parameters and state)."""
  shape, student, teacher, matching = case
  config = config_lib.base()
  config.batch_size = BATCH
  config.student.model, config.student.options = student
  config.teacher.model, config.teacher.options = teacher
  config.distillation.use_attention_transfer = matching
  config.distillation.use_feature_matching = matching
  batch = batch_of(shape)
  mesh = placement.build_mesh(config.mesh, jax.devices()[:1])
  program = program_lib.build_program(
      config,
      spec=jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch)),
      num_classes=CLASSES, mesh=mesh, has_teacher=True)
  frozen = base.Frozen(
      *jax.jit(program.objective.teacher.init)(jax.random.key(1), batch))
  frozen = program.freeze(frozen)
  state = program.init(jax.random.key(0))
  placed = sharding.shard_batch(mesh, batch)
  holder = dict(state=state)

  def step():
    holder['state'], metrics = program.train_step(holder['state'], frozen,
                                                  placed)
    return metrics['loss']

  copy = jax.tree.map(jnp.copy, (state.params.student, state.net_state))
  return step, copy, frozen


def build_by_hand(case, student, frozen):
  """Returns one step in plain JAX, from the same parameters."""
  shape, (student_name, student_options), (teacher_name,
                                           teacher_options), matching = case
  batch = batch_of(shape)
  image, labels = jnp.asarray(batch.inputs), jnp.asarray(batch.labels)

  def network(name, options, is_training):
    """A Haiku transform that also returns features and maps of a ViT."""
    function = getattr(getattr(models, name), name)

    def forward(image):
      taken = {}

      def take(next_call, args, kwargs, context):
        output = next_call(*args, **kwargs)
        last = context.module.module_name.split('/')[-1]
        if context.method_name == '__call__' and (last.startswith('block_') or
                                                  last == 'maps'):
          taken.setdefault(last[:4], []).append(output)
        return output

      with hk.intercept_methods(take):
        logits = function(image, is_training=is_training, num_classes=CLASSES,
                          **options)
      return logits, taken

    return hk.transform_with_state(forward)

  trained = network(student_name, student_options, True)
  fixed = network(teacher_name, teacher_options, False)
  optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, 1000),
                          weight_decay=0.0)

  def loss(params, state, frozen, image, labels):
    (logits, own), state = trained.apply(params, state, None, image)
    (target, other), _ = fixed.apply(*frozen, None, image)
    log_p = jax.nn.log_softmax(target / 2)
    log_q = jax.nn.log_softmax(logits / 2)
    soft = 4 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    total = 0.9 * soft + 0.1 * hard.mean()
    if matching:
      for i, j in ((0, 1), (1, 3)):
        x, y = own['bloc'][i], other['bloc'][j]
        y = y.reshape(*y.shape[:-1], x.shape[-1], -1).mean(-1)
        total += 0.1 * ((x - y)**2).mean() / 2
        x, y = own['maps'][i].materialise(), other['maps'][j].materialise()
        b, h, n, _ = x.shape
        y = y.reshape(b, h, -1, n, n).mean(2)
        unit = lambda z: z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        total += 0.1 * (1 - (unit(x) * unit(y)).sum(-1)).mean() / 2
    return total, state

  @jax.jit
  def step(params, state, opt_state, frozen, image, labels):
    (value, state), grads = jax.value_and_grad(
        loss, has_aux=True)(params, state, frozen, image, labels)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), state, opt_state, value

  holder = dict(state=(*student, optimizer.init(student[0])))

  def run():
    *holder['state'], value = step(*holder['state'], frozen, image, labels)
    return value

  return run


def measure(step, repeats):
  """Returns wall and CPU seconds of some steps."""
  wall, cpu = time.perf_counter(), time.process_time()
  for _ in range(repeats):
    value = step()
  jax.block_until_ready(value)
  return time.perf_counter() - wall, time.process_time() - cpu


def compare(case, rounds):
  """Returns (wall ratio, CPU ratio) of each round, after checking the loss."""
  ours, student, frozen = build_haikd(case)
  by_hand = build_by_hand(case, student, frozen)
  np.testing.assert_allclose(ours(), by_hand(), rtol=1e-4)
  np.testing.assert_allclose(ours(), by_hand(), rtol=1e-3)  # One update later.
  seconds, _ = measure(by_hand, 5)
  repeats = max(5, round(1.0 / (seconds / 5)))  # About a second each.
  ratios = []
  for _ in range(rounds):
    one, other = measure(ours, repeats), measure(by_hand, repeats)
    ratios.append([a / b for a, b in zip(one, other)])
  return np.array(ratios), seconds / 5


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=9)
  rounds = parser.parse_args().rounds
  print('haikd / by hand: median (range)')
  for name, case in CASES.items():
    ratios, seconds = compare(case, rounds)
    wall, cpu = (
        f'{statistics.median(r):.3f} ({min(r):.3f}-{max(r):.3f})'
        for r in ratios.T)
    print(f'{name:45} wall {wall}  cpu {cpu}  by hand {1e3 * seconds:.1f} ms',
          flush=True)


if __name__ == '__main__':
  main()
