"""The losses on features, maps and heads as terms of one job, on each mesh."""

import json
import textwrap

import jax
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import step as step_lib

BATCH, LENGTH, VOCABULARY = 16, 4, 11
FEATURES = ('activation_attention', 'cka', 'correlation', 'neuron_selectivity',
            'probabilistic_transfer', 'relational_angle', 'relational_distance',
            'similarity_preserving', 'variational_information')
TERMS = dict(
    {name: {} for name in (*FEATURES, 'attention_kl', 'flow_of_procedure')},
    contrastive=dict(data_size=20, size=3),
    attention_scores_mse=dict(heads=2), minilm_relations=dict(relation_heads=4))
TAPS = dict(query='attn/query', key='attn/key', value='attn/value',
            flow_start='attn/output', flow_end='mlp/down')


def add_losses(config):
  """Makes a config of two small language models with all losses."""
  for network, width in ((config.student, 8), (config.teacher, 16)):
    network.model = 'llama'
    network.options = dict(width=width, depth=1, heads=2, hidden=8)
    network.taps = TAPS
  for name, options in TERMS.items():
    config.losses[name] = dict(loss=name, options=options)
  return config


def ragged_batch():
  """Rows of all lengths, and an empty shard on 8 devices."""
  rng = np.random.RandomState(0)
  lengths = rng.randint(0, LENGTH + 1, size=BATCH)
  lengths[2:4] = 0
  draw = lambda: rng.randint(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
  return base.Batch(inputs=draw(), mask=np.arange(LENGTH) < lengths[:, None],
                    labels=draw())


def measure(devices):
  """Returns the gradient and the mean of each term."""
  config, batch = add_losses(config_lib.base()), ragged_batch()
  config.batch_size = BATCH
  program = program_lib.build_program(
      config,
      spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                        batch),
      num_classes=VOCABULARY,
      mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:devices]),
      has_teacher=True)
  frozen = program.freeze(base.Variables(
      *jax.jit(program.objective.teacher.init)(jax.random.key(7), batch)))
  state = program.init(jax.random.key(0))
  gradient = jax.jit(step_lib.build_gradient(
      program.objective, program.mesh, *mesh_lib.shardings_of(
          (program.abstract_state.params, program.abstract_frozen)),
      microbatches=1, seed=0))
  gradients, _, sums = gradient(
      state.params, state.net_state, frozen, state.loss_scale, np.int32(0),
      collectives.shard_batch(program.mesh, batch))
  _, metrics = program.objective.combine(sums, 0)
  return jax.device_get(
      (state.loss_scale.unscale(gradients), metrics))


@pytest.fixture(scope='module')
def on_one_device():
  return measure(1)


@pytest.mark.parametrize('devices', (
    pytest.param(2, marks=pytest.mark.slow),
    pytest.param(4, marks=pytest.mark.slow), 8))
def test_every_mesh_has_the_values_and_gradients_of_one_device(
    devices, on_one_device):
  gradients, metrics = measure(devices)
  for name in TERMS:
    assert np.isfinite(metrics[name])
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(
          x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max()),
      (gradients, metrics), on_one_device)


def test_a_job_trains_with_each(run, tmp_path):
  lines = '\n'.join((
      'from haikd import config as config_lib', 'def get_config():',
      '  config = config_lib.base()', '  config.steps = 1',
      '  config.batch_size = config.evaluation.batch_size = 8',
      '  config.teacher.train.steps = config.log_every = 1',
      "  config.data.name = 'synthetic'",
      "  config.data.options = dict(kind='tokens', size=20, length=4,",
      '                             vocabulary=11)',
      '  for network, width in ((config.student, 8), (config.teacher, 16)):',
      "    network.model = 'llama'",
      '    network.options = dict(width=width, depth=1, heads=2, hidden=8)',
      f'    network.taps = {TAPS!r}',
      f'  for name, options in {TERMS!r}.items():',
      '    config.losses[name] = dict(loss=name, options=options)',
      '  return config'))
  (tmp_path / 'methods.py').write_text(textwrap.dedent(lines))
  code, _, err = run(config='methods.py')
  assert code == 0, err
  rows = (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  values = next(json.loads(row) for row in rows if '"train"' in row)
  for name in TERMS:
    assert np.isfinite(values[f'loss/{name}']), values
