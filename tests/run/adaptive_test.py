"""Layers that hold the same are found on the training split, and kept."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.engine import mesh as mesh_lib
from haikd.run import adaptive
from haikd.run import calibration
from haikd.run import trainees
from haikd.run import trainer
from haikd.storage import checkpoint

WIDTH, TEACHER, STUDENT = 12, 7, 3


def parallel_layers(x, *, is_training, num_classes, depth=STUDENT):
  """Returns layers that all see the input, so that each can be anything."""
  del is_training
  layers = [hk.Linear(WIDTH, name=f'layer_{i}')(x) for i in range(depth)]
  return hk.Linear(num_classes, name='head')(jnp.concatenate(layers, -1))


class Numbers(list):
  num_classes = 3


@pytest.fixture
def config():
  examples = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
  with registry.models.temporary(), registry.datasets.temporary():
    registry.register_model('parallel')(parallel_layers)
    registry.register_dataset('numbers')(lambda split: Numbers(
        dict(x=x, label=i % 3) for i, x in enumerate(examples)))
    config = haikd.config.base()
    config.data.name = 'numbers'
    config.batch_size, config.steps = 32, 2
    config.teacher.model = config.student.model = 'parallel'
    config.teacher.options = dict(depth=TEACHER)
    config.student.taps = config.teacher.taps = dict(features='layer_*')
    config.teacher.train.steps = 1
    config.losses.hint = haikd.config.term(
        loss='feature_matching', layers='adaptive')
    haikd.config.validate(config)
    yield config


def layers(rng, depth):
  return [rng.normal(size=(5, WIDTH)).astype(np.float32) for _ in range(depth)]


def variables(weights):
  head = np.zeros((WIDTH * len(weights), 3), np.float32)
  return base.Variables({
      **{f'layer_{i}': dict(w=w, b=np.zeros(WIDTH, np.float32))
         for i, w in enumerate(weights)},
      'head': dict(w=head, b=np.zeros(3, np.float32))}, {})


@pytest.mark.mesh
@pytest.mark.parametrize('devices', (1, 8))
def test_planted_correspondences_are_found(config, devices):
  """A layer of the student is one of the teacher with more of its own."""
  mesh = mesh_lib.build_mesh(config.mesh, jax.devices()[:devices])
  student = trainees.build(config, mesh)
  program = student.program
  terms = [term for term in program.objective.terms if term.name == 'hint']
  match = adaptive.build_match(student, terms)
  state = program.abstract_state
  placed = mesh_lib.shardings_of(
      base.Variables(state.params.student, state.net_state))
  for seed in range(20):
    rng = np.random.default_rng(seed)
    teacher = layers(rng, TEACHER)
    planted = np.sort(rng.choice(TEACHER, STUDENT, replace=False))
    own = [teacher[j] + 0.3 * w for j, w in zip(planted, layers(rng, STUDENT))]
    found = match(jax.device_put(variables(own), placed),
                  program.freeze(variables(teacher)))['hint']
    assert found.similarity.shape == (STUDENT, TEACHER)
    assert [j for _, (j,) in found.pairs] == planted.tolist()


def test_pairs_are_said_kept_and_used_again(config, tmp_path, caplog):
  caplog.set_level('INFO')
  haikd.train(config, tmp_path)
  assert 'layers of hint learn from those that they resemble' in caplog.text
  kept = adaptive.read(tmp_path)['hint']
  values, pairs = np.array(kept['similarity']), kept['pairs']
  assert values.shape == (STUDENT, TEACHER)
  chosen = [j for _, (j,) in pairs]
  assert chosen == sorted(set(chosen))
  assert checkpoint.metadata(tmp_path)['layers']['hint'] == pairs
  caplog.clear()
  config.steps = 4
  haikd.train(config, tmp_path)
  assert checkpoint.metadata(tmp_path)['layers']['hint'] == pairs
  assert 'resemble' not in caplog.text


def test_a_projection_starts_from_the_teachers_principal_components(config):
  config.losses.hint = haikd.config.term(
      loss='feature_matching', layers=((0, 5),), align='project',
      align_options=dict(init='pca'))
  student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  teacher = layers(np.random.default_rng(0), TEACHER)
  state = trainer.start(student.config, student.program, student.data,
                        student.program.freeze(variables(teacher)))
  project = state.params.align['hint']['0']['project']
  examples = np.stack([
      x['x'] for x in registry.datasets['numbers'].function('train')])
  states = np.float64(examples) @ teacher[5]
  np.testing.assert_allclose(project['b'], states.mean(0), atol=1e-5)
  values, vectors = np.linalg.eigh(np.cov(states.T))
  largest = vectors[:, np.argsort(values)[::-1][:5]].T  # Of rank 5, as inputs.
  np.testing.assert_allclose(np.abs(np.sum(project['w'][:5] * largest, axis=1)),
                             1, atol=1e-4)


def test_a_projection_with_a_learning_rate_of_its_own(config, tmp_path):
  config.losses.hint = haikd.config.term(
      loss='feature_matching', layers='adaptive', align='project',
      align_options=dict(init='pca', rank=3, bias=False))
  config.optimizer.lr_multipliers = {'losses/hint': 10.0}
  config.baseline = True  # It has no such parameters.
  assert 'student' in haikd.train(config, tmp_path)


@pytest.mark.report
def test_pairs_are_on_the_page(run, tmp_path):
  code, _, err = run('--config.distillation.use_feature_matching=True',
                     '--config.distillation.feature_match_layers=adaptive')
  assert code == 0, err
  assert 'layers of feature_matching learn from those that they resem' in err
  workdir = tmp_path / 'run'
  page = (workdir / 'report.html').read_text()
  found = adaptive.read(workdir)['feature_matching']['pairs']
  chosen = [j for _, (j,) in found]
  assert f'<td>{", ".join(map(str, chosen))}</td>' in page


def test_states_that_are_all_alike_are_refused(config, tmp_path):
  with registry.datasets.temporary():
    registry.register_dataset('numbers', replace=True)(lambda split: Numbers(
        dict(x=np.ones(5, np.float32), label=i % 3) for i in range(40)))
    with pytest.raises(checks.ConfigError, match='hint must be of layers'):
      haikd.train(config, tmp_path)


def test_states_are_those_of_all_positions_that_count(config):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(40, 6, 5)).astype(np.float32)
  mask = np.arange(6) < rng.integers(1, 7, 40)[:, None]
  with registry.datasets.temporary():
    registry.register_dataset('numbers', replace=True)(lambda split: Numbers(
        dict(x=a, mask=b, label=np.full(6, i % 3))
        for i, (a, b) in enumerate(zip(x, mask))))
    config.task = 'tagging'
    student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
    states = calibration.build_states(
        student.config, student.program, student.data, ['features'])
    own, teacher = (layers(np.random.default_rng(seed), depth)
                    for seed, depth in ((1, STUDENT), (2, TEACHER)))
    found = states(variables(own), student.program.freeze(
        variables(teacher)))['features']
  for role, weights in (('student', own), ('teacher', teacher)):
    for rows, w in zip(found[role], weights, strict=True):
      expected = x[mask] @ w
      order, expected_order = (np.argsort(r[:, 0]) for r in (rows, expected))
      np.testing.assert_allclose(
          rows[order], expected[expected_order], rtol=1e-4, atol=1e-5)


def test_positions_of_a_map_are_chosen_from_all_columns():
  chosen = calibration._choose(32 * 32, 32)
  assert len(set(chosen)) == 32 and len(set(chosen % 32)) > 10
  np.testing.assert_array_equal(calibration._choose(5, 9), range(5))


@pytest.mark.parametrize('selection', (
    dict(kind='adaptiv'), dict(kind='adaptive', monotone='yes'),
    dict(monotone=True)))
def test_other_dicts_are_refused(config, selection):
  config.losses.hint.layers = selection
  with pytest.raises(checks.ConfigError, match='layers must have a known form'):
    trainees.build(config, mesh_lib.build_mesh(config.mesh))
