"""Encoders end to end: terms on embeddings, on several devices, evaluation."""

import ast
import os
import pathlib
import socket
import subprocess
import sys

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import haikd
from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.engine import collectives as collectives_lib
from haikd.engine import evaluate as evaluate_lib
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import step as step_lib
from haikd.objective import build as build_lib
from haikd.objective import pairs as pairs_lib

BATCH, LENGTH = 16, 6


def encoder(tokens, *, is_training, mask, width):
  """Returns the mean hidden state of each text of an example."""
  flat = tokens.reshape(-1, tokens.shape[-1])
  keep = mask.reshape(flat.shape)
  hidden = jnp.tanh(hk.Linear(width)(hk.Embed(16, width)(flat)))
  hidden = haikd.tap('hidden', hidden)
  haikd.tap('token_embedding', hidden.reshape(*tokens.shape, width))
  total = jnp.where(keep[..., None], hidden, 0.0).sum(1)
  vectors = total / jnp.maximum(keep.sum(1), 1)[:, None]
  vectors = vectors.reshape(*tokens.shape[:-1], width)
  return base.Embedding(haikd.tap('embedding', vectors))


def register():
  registry.register_model(
      taps=dict(embedding='embedding', features='hidden',
                token_embedding='token_embedding'))(encoder)


@pytest.fixture(autouse=True)
def models():
  with registry.models.temporary():
    register()
    yield


def make_batch(texts=None, size=BATCH, seed=0, **fields):
  """Returns ragged rows; the last rows and one other text are padding only."""
  rng = np.random.RandomState(seed)
  shape = (size,) if texts is None else (size, texts)
  lengths = rng.randint(1, LENGTH + 1, size=shape)
  lengths[-3:] = 0
  lengths[(4, *(0,) * (len(shape) - 1))] = 0
  return base.Batch(
      inputs=rng.randint(0, 16, (*shape, LENGTH)).astype(np.int32),
      mask=np.arange(LENGTH) < lengths[..., None], **fields)


def make_config(**terms):
  config = config_lib.base()
  config.batch_size = BATCH
  config.distillation.alpha = 0.0
  config.student.model = config.teacher.model = 'encoder'
  config.student.options = dict(width=6)  # As wide as rows are long.
  config.teacher.options = dict(width=10)
  config.losses.update(terms)
  return config


def spec_of(batch):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def build(config, batch, devices=1):
  config_lib.validate(config)
  program = program_lib.build_program(
      config, spec=spec_of(batch), num_classes=None, has_teacher=True,
      mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:devices]))
  frozen = program.freeze(base.Variables(*jax.device_get(
      program.objective.teacher.init(jax.random.key(7), batch))))
  return program, frozen


def gradient(config, batch, devices):
  program, frozen = build(config, batch, devices)
  state = program.init(jax.random.key(0))
  layout = mesh_lib.shardings_of(
      (program.abstract_state.params, program.abstract_frozen))
  function = step_lib.build_gradient(
      program.objective, program.mesh, *layout,
      microbatches=config.microbatches, seed=0)
  grads, _, sums = jax.jit(function)(
      state.params, state.net_state, frozen, state.loss_scale, state.step,
      collectives_lib.shard_batch(program.mesh, batch))
  loss, _ = program.objective.combine(sums, state.step)
  return jax.device_get((loss, grads, sums))


TERMS = dict(
    cosine=dict(loss='embedding_cosine', align='project'),
    matching=dict(loss='embedding_matching'),
    hidden=dict(loss='feature_cosine', align='pool'),
    similar=dict(loss='similarity_distribution', weight=0.5,
                 options=dict(temperature=0.2)))


@pytest.mark.parametrize('texts', (None, 2))
def test_gradient_does_not_depend_on_the_number_of_devices(texts):
  batch = make_batch(texts)
  loss, grads, sums = gradient(make_config(**TERMS), batch, 1)
  same, many, _ = gradient(make_config(**TERMS), batch, 8)
  rows = batch.mask.any(-1).sum()
  counts = {name: int(layers[0].count) for name, layers in sums.items()}
  assert counts == dict(cosine=rows, matching=6 * rows,
                        hidden=batch.mask.sum(), similar=rows)
  np.testing.assert_allclose(loss, same, rtol=1e-6)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      grads, many)
  assert all(np.any(x) for x in jax.tree.leaves(grads))


SCORE_TERMS = {name: dict(loss=name) for name in (
    'margin_mse', 'score_kl', 'maxsim_kl', 'info_nce')}


@pytest.mark.parametrize('has_labels', (
    False, pytest.param(True, marks=pytest.mark.slow)))
def test_losses_on_scores_do_not_depend_on_the_number_of_devices(has_labels):
  batch = make_batch(4)
  if has_labels:
    scores = np.random.RandomState(5).normal(size=(BATCH, 3))
    batch = batch._replace(labels=scores.astype(np.float32))
  config = make_config(**SCORE_TERMS)
  _, grads, sums = gradient(config, batch, 1)
  _, many, sums_of_many = gradient(config, batch, 8)
  real = batch.mask.any(-1)
  candidates = real[:, 1:] & real[:, :1]
  lists = (candidates.sum(-1) > 1).sum()
  counts = {name: int(layers[0].count) for name, layers in sums.items()}
  assert counts == dict(
      margin_mse=(candidates[:, 1:] & candidates[:, :1]).sum(),
      score_kl=lists, maxsim_kl=lists, info_nce=candidates[:, 0].sum())
  means = [{name: layers[0].total / layers[0].count
            for name, layers in x.items()} for x in (sums, sums_of_many)]
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
          a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max()),
      (means[0], grads), (means[1], many))
  assert all(np.any(x) for x in jax.tree.leaves(grads))


def test_loss_that_takes_any_width_gets_unaligned_vectors():
  seen = []
  with registry.losses.temporary():

    @haikd.register_loss(on='embedding', relational=True, any_width=True)
    def widths(student, teacher, *, mask):
      seen.append((student.shape, teacher.shape, mask.shape))
      return haikd.masked_mean(student.sum(-1), mask)

    batch = make_batch()
    build(make_config(x=dict(loss='widths')), batch)
    assert set(seen) == {((BATCH, 6), (BATCH, 10), (BATCH,))}
    seen.clear()
    build(make_config(x=dict(loss='widths', align='pool')), batch)
    assert set(seen) == {((BATCH, 6), (BATCH, 6), (BATCH,))}


def test_other_losses_refuse_different_widths_unaligned():
  config = make_config(x=dict(loss='embedding_cosine', align='none'))
  with pytest.raises(checks.ConfigError,
                     match=r'^config\.losses\.x: .*same shape; got .*\(16, 6\)'
                     r".*\(16, 10\).*align='pool' or, for features, 'proj"):
    build(config, make_batch())


@pytest.mark.parametrize('kind, shape, mask, expected', (
    ('embedding', (3, 4), (3,), (3,)),
    ('embedding', (3, 4), (3, 4), (3,)),  # D is N.
    ('embedding', (3, 2, 4), (3, 2, 5), (3, 2)),
    ('token_embedding', (3, 2, 5, 4), (3, 2, 5), (3, 2, 5)),
    ('features', (3, 4), (3, 5), (3,)),
    ('features', (3, 5, 4), (3, 5), (3, 5)),
    ('features', (3, 5), (3, 5), (3, 5)),  # A number a position.
    ('features', (6, 5, 4), (3, 2, 5), (6, 5)),
    ('attention', (6, 2, 5, 5), (3, 2, 5), (6, 5)),
))
def test_mask_of_a_tap(kind, shape, mask, expected):
  mask = np.random.RandomState(0).rand(*mask) < 0.3
  got = pairs_lib.tap_mask(jnp.asarray(mask), jnp.zeros(shape), kind)
  if expected[0] == 6:
    mask = np.concatenate([*mask])
  while mask.ndim > len(expected):
    mask = np.any(mask, axis=-1)
  assert got.shape == expected
  np.testing.assert_array_equal(got, mask)


def test_maps_of_several_texts_have_the_mask_of_each():
  query = base.QueryKey(jnp.zeros((6, 5, 2, 3)), jnp.zeros((6, 5, 2, 3)))
  mask = jnp.arange(30).reshape(3, 2, 5) % 3 == 0
  np.testing.assert_array_equal(
      pairs_lib.tap_mask(mask, query, 'attention'), mask.reshape(6, 5))


@pytest.mark.parametrize('alpha, labels', ((0.9, None), (0.0, 'classes')))
def test_losses_on_logits_refuse_an_embedding(alpha, labels):
  config = make_config(**TERMS)
  config.distillation.alpha = alpha
  batch = make_batch()
  if labels:
    batch = batch._replace(labels=np.zeros(BATCH, np.int32))
  with pytest.raises(
      checks.ConfigError,
      match=r'config\.student must return logits for a loss on logits; got an '
      r"Embedding\. Set config\.distillation\.alpha = None, .* on 'embedding'"):
    build(config, batch)


def test_scores_are_not_classes_to_predict():
  batch = make_batch(2, labels=np.zeros(BATCH, np.float32))
  objective = build_lib.build_objective(
      make_config(x=TERMS['cosine']), spec=spec_of(batch), num_classes=None)
  assert [term.name for term in objective.terms] == ['x']


def pair_batches():
  rng = np.random.RandomState(3)
  return [
      make_batch(2, seed=seed, labels=rng.rand(BATCH).astype(np.float32))
      for seed in range(3)
  ]


@pytest.mark.parametrize('devices, microbatches', ((1, 1), (8, 1), (2, 4)))
def test_every_pair_is_in_the_correlation_once(devices, microbatches):
  batches = pair_batches()
  config = make_config(**TERMS)
  config.microbatches = microbatches
  config.student.options = config.teacher.options
  program, frozen = build(config, batches[0], devices)
  untrained = program_lib.trained_network(program.init(jax.random.key(0)))
  got = evaluate_lib.evaluate(program.eval_step, untrained, frozen, batches,
                              program.mesh)

  def run(network, weights):
    return np.concatenate([
        network.apply(*jax.device_get(weights), None, batch,
                      is_training=False)[0].logits.vectors for batch in batches
    ]).astype(np.float64)

  def cosine(a, b):
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.where(lengths > 0, lengths, 1)

  student = run(program.objective.student, untrained)
  teacher = run(program.objective.teacher, frozen)
  mask = np.concatenate([batch.mask for batch in batches]).any(-1)
  scores = np.concatenate([batch.labels for batch in batches])
  pairs = mask.all(-1)
  assert 0 < pairs.sum() < mask.any(-1).sum() < len(mask)
  correlated = cosine(student[pairs, 0], student[pairs, 1]), scores[pairs]
  expected = dict(
      cosine=cosine(student[mask], teacher[mask]).mean(),
      spearman=stats.spearmanr(*correlated).statistic,
      pearson=stats.pearsonr(*correlated).statistic)
  assert set(got) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def evaluated(batches, devices, share=slice(None)):
  """Returns the metrics of an untrained student on a process's share."""
  config = make_config(**TERMS)
  config.student.options = config.teacher.options
  program, frozen = build(config, batches[0], devices)
  untrained = program_lib.trained_network(program.init(jax.random.key(0)))
  batches = [jax.tree.map(lambda x: x[share], batch) for batch in batches]
  return evaluate_lib.evaluate(program.eval_step, untrained, frozen, batches,
                               program.mesh)


PROCESS = """
import sys
import jax
import embeddings_test as tests

number = int(sys.argv[1])
jax.distributed.initialize(sys.argv[2], 2, number)
tests.register()
half = tests.BATCH // 2
share = slice(number * half, (number + 1) * half)
print(sorted(tests.evaluated(tests.pair_batches(), 4, share).items()))
"""


@pytest.mark.slow
def test_two_processes_find_the_same_correlation():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=2'
  folder = pathlib.Path(__file__).parent
  paths = [str(folder), str(folder.parents[1]),
           os.environ.get('PYTHONPATH', '')]
  environment = dict(os.environ, XLA_FLAGS=flags,
                     PYTHONPATH=os.pathsep.join(paths))
  processes = [
      subprocess.Popen([sys.executable, '-c', PROCESS, str(number), address],
                       stdout=subprocess.PIPE, text=True, env=environment)
      for number in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  # The collectives print the lines before the last one.
  metrics = [dict(ast.literal_eval(text.splitlines()[-1])) for text in outputs]
  assert metrics[0] == metrics[1]
  assert metrics[0] == pytest.approx(evaluated(pair_batches(), 1), rel=1e-5)


def test_teacher_has_a_cosine_of_one_with_itself():
  batch = make_batch()
  program, frozen = build(make_config(**TERMS), batch)
  got = evaluate_lib.evaluate(program.teacher_eval_step, frozen, None, [batch],
                              program.mesh)
  assert got == dict(cosine=1.0)


def test_training_brings_embeddings_together():
  config = make_config(
      x=dict(loss='embedding_cosine', align='none'), y=TERMS['similar'])
  config.student.options = config.teacher.options
  config.optimizer.learning_rate = 0.05
  config.optimizer.schedule = 'constant'
  batch = make_batch()
  program, frozen = build(config, batch, devices=2)
  state = program.init(jax.random.key(0))
  cosines = []
  for _ in range(2):
    student = program_lib.trained_network(state)
    cosines.append(
        evaluate_lib.evaluate(program.eval_step, student, frozen, [batch],
                              program.mesh)['cosine'])
    for _ in range(40):
      state, _ = program.train_step(
          state, frozen, collectives_lib.shard_batch(program.mesh, batch))
  assert cosines[0] < 0.2 and cosines[1] > 0.8
