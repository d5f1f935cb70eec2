"""Every example of a split counts exactly once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.data import pipeline
from haikd.data import source
from haikd.engine import collectives
from haikd.engine import evaluate
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib

OPTIONS = dict(size=50, shape=(4, 4, 1), num_classes=3)


MLP = dict(model='mlp', options=dict(hidden=(4,)))
CONVNET = dict(model='convnet', options=dict(channels=(4,), dropout=0.5))


def build(devices, batch_size, student=None, microbatches=1):
  config = config_lib.base()
  config.batch_size = 24
  config.microbatches = microbatches
  config.data.name = 'synthetic'
  config.data.options = OPTIONS
  config.evaluation.batch_size = batch_size
  config.student.update(student or MLP)
  config.teacher.options = dict(hidden=(8,))
  mesh = mesh_lib.build_mesh(config.mesh, jax.devices()[:devices])
  data = pipeline.build_data(config, shards=devices)
  program = program_lib.build_program(
      config, spec=data.spec, num_classes=3, mesh=mesh, has_teacher=True)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), data.spec)
  untrained, frozen = (
      base.Variables(*network.init(jax.random.key(seed), zeros))
      for seed, network in enumerate((program.objective.student,
                                      program.objective.teacher)))
  return program, data, untrained, frozen


def place(untrained, program):
  return jax.device_put(
      untrained,
      mesh_lib.shardings_of(program_lib.trained_network(
          program.abstract_state)))


@pytest.mark.parametrize('devices, batch_size, student, microbatches', (
    (1, 50, MLP, 1), (1, 7, MLP, 1), (3, 16, MLP, 1), (8, 16, MLP, 1),
    (8, 1, MLP, 1), (1, 50, CONVNET, 1), (2, 16, MLP, 4)))
def test_metrics_are_those_of_all_examples(devices, batch_size, student,
                                           microbatches):
  program, data, untrained, frozen = build(
      devices, batch_size, student, microbatches)
  got = evaluate.evaluate(
      program.eval_step, place(untrained, program), program.freeze(frozen),
      data.evaluation('validation'),
      program.mesh)
  examples = source.open_source('synthetic', 'validation', options=OPTIONS)
  images = np.stack([e['image'] for e in examples]).astype(np.float32) / 255
  labels = np.array([e['label'] for e in examples])
  batch = base.Batch(images, np.ones(len(images), bool))
  logits = lambda network, weights: np.asarray(
      network.apply(*weights, None, batch, is_training=False)[0].logits,
      np.float64)
  student = logits(program.objective.student, untrained)
  teacher = logits(program.objective.teacher, frozen)
  log = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
  p, q = np.exp(log(teacher)), np.exp(log(student))
  kl = (p * (log(teacher) - log(student))).sum(-1)
  expected = dict(
      accuracy=(student.argmax(-1) == labels).mean(),
      cross_entropy=-log(student)[np.arange(len(labels)), labels].mean(),
      kl=kl.mean(),
      reverse_kl=(q * (log(student) - log(teacher))).sum(-1).mean(),
      acceptance=np.minimum(p, q).sum(-1).mean(),
      agreement=(student.argmax(-1) == teacher.argmax(-1)).mean())
  expected['f1'] = macro_f1(student.argmax(-1), labels)
  assert set(got) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def macro_f1(predicted, true):
  """Precision and recall of each of the three classes, one against all."""
  scores = []
  for c in range(3):
    hits = np.sum((predicted == c) & (true == c))
    if np.any(predicted == c) or np.any(true == c):
      precision = hits / max(np.sum(predicted == c), 1)
      recall = hits / max(np.sum(true == c), 1)
      both = precision + recall
      scores.append(2 * precision * recall / both if both else 0.0)
  return np.mean(scores)


def test_each_example_is_evaluated_on_one_device():
  program, data, untrained, frozen = build(8, 16)
  *_, last = data.evaluation('validation')
  (sums,) = program.eval_step(
      place(untrained, program), program.freeze(frozen),
      collectives.shard_batch(program.mesh, last))[0].values()
  counts = sums.pop('f1')
  assert counts.true.sum() == counts.predicted.sum() == 2
  # The last of the 50 examples are two; on all devices they would count as 16.
  assert {float(x.count) for x in sums.values()} == {2}


def test_network_that_is_compared_with_itself_runs_once():
  program, data, _, frozen = build(1, 50)
  teacher, calls = program.objective.teacher, []

  def apply(*args, **options):
    calls.append(1)
    return teacher.apply(*args, **options)

  counting = teacher._replace(apply=apply)
  layout = mesh_lib.shardings_of(program.abstract_frozen)
  step = evaluate.build_eval_step(counting, counting, program.mesh, layout,
                                  None)
  got = evaluate.evaluate(step, program.freeze(frozen), None,
                          data.evaluation('validation'), program.mesh)
  assert calls == [1]
  assert (got['kl'], got['agreement']) == (0, 1)


def test_only_positions_with_a_target_count():
  rng = np.random.RandomState(0)
  mask = np.arange(6) < rng.randint(1, 7, 16)[:, None]
  targets = mask & np.roll(mask, -1, axis=1) & (np.arange(6) < 5)
  assert 0 < targets.sum() < mask.sum()
  batch = base.Batch(
      inputs=rng.randint(0, 5, (16, 6)).astype(np.int32), mask=mask,
      labels=np.zeros((16, 6), np.int32), target_mask=targets)
  config = config_lib.base()
  config.batch_size = 16
  for network in config.student, config.teacher:
    network.model = 'llama'
    network.options = dict(width=8, depth=1, heads=2, hidden=8)
  program = program_lib.build_program(
      config, num_classes=5, has_teacher=True,
      spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                        batch),
      mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:1]))
  untrained, frozen = (
      base.Variables(*network.init(jax.random.key(0), batch))
      for network in (program.objective.student, program.objective.teacher))
  sums, _ = program.eval_step(untrained, program.freeze(frozen), batch)
  sums, = sums.values()
  assert {float(x.count) for x in sums.values()} == {targets.sum()}


def test_results_are_fetched_two_batches_later(monkeypatch):
  program, data, *_ = build(1, 8)
  started, ahead = [], []

  def step(evaluated, frozen, batch):
    started.append(batch.mask.sum())
    return (dict(tokens=dict(examples=base.LossSum(started[-1], 1.0))),
            dict(tokens={}), len(started))

  def fetch(results):
    *results, number = results
    ahead.append(len(started) - number)
    return results

  monkeypatch.setattr(evaluate.jax, 'device_get', fetch)
  means = evaluate.evaluate(step, None, None, data.evaluation('test'),
                            program.mesh)
  assert ahead == [2] * 5 + [1, 0]  # With 0 it waits; more take memory.
  assert means == dict(examples=50 / 7)


def test_training_in_microbatches_limits_evaluation():
  # 24 examples over 2 devices in 4 microbatches make 3 each. The largest
  # divisor of 13 that does not exceed 3 is 1.
  program, data, untrained, frozen = build(2, 28, microbatches=4)
  batch, = list(data.evaluation('train'))[:1]
  assert len(batch.mask) == 26  # 50 in two batches, divisible by 2 devices.
  text = str(jax.make_jaxpr(program.eval_step)(untrained, frozen, batch))
  assert 'f32[1,16]' in text and 'f32[13,16]' not in text
  at_once, *_ = build(2, 28)
  text = str(jax.make_jaxpr(at_once.eval_step)(untrained, frozen, batch))
  assert 'f32[13,16]' in text


def test_empty_split_is_refused():
  program, _, untrained, frozen = build(1, 16)
  with pytest.raises(checks.DataError, match='split must hold at least '
                     'one example; got none'):
    evaluate.evaluate(program.eval_step, untrained, frozen, [], program.mesh)
