"""Layers that hold the same are found on the training split, and kept."""

import contextlib
import itertools

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
from haikd.run import ahead
from haikd.run import calibration
from haikd.run import first_state
from haikd.run import teachers
from haikd.run import trainees
from haikd.run import training
from haikd.storage import checkpoint
from haikd.storage import fingerprint

WIDTH, TEACHER, STUDENT = 12, 7, 3


def parallel_layers(x, *, is_training, num_classes, depth=STUDENT):
  """Returns layers that all see the input, so that each can be anything."""
  del is_training
  layers = [hk.Linear(WIDTH, name=f'layer_{i}')(x) for i in range(depth)]
  return hk.Linear(num_classes, name='head')(jnp.concatenate(layers, -1))


def uneven_layers(x, *, is_training, num_classes, depth=STUDENT):
  """Returns layers of other widths."""
  del is_training
  layers = [hk.Linear(WIDTH + i, name=f'layer_{i}')(x) for i in range(depth)]
  return hk.Linear(num_classes, name='head')(jnp.concatenate(layers, -1))


def pairs_of_vectors(x, *, is_training, num_classes, depth=STUDENT):
  """Returns logits; its tap holds two vectors an example."""
  del is_training, depth
  haikd.tap('pairs', x[:, None] * jnp.ones((2, 1)))
  return hk.Linear(num_classes, name='head')(x)


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
  assert checkpoint.metadata(tmp_path)['layers'] == [{'hint': pairs}]
  caplog.clear()
  config.steps = 4
  haikd.train(config, tmp_path)
  assert checkpoint.metadata(tmp_path)['layers'] == [{'hint': pairs}]
  assert 'resemble' not in caplog.text


def test_no_step_is_compiled_before_layers_are_paired(
    config, tmp_path, monkeypatch):
  haikd.train(config, tmp_path)
  config.steps = 4  # The student is what is trained first.
  steps, step = [], ahead._step
  monkeypatch.setattr(ahead, '_step', lambda *args, **kwargs: (
      steps.append(args), step(*args, **kwargs))[1])
  haikd.train(config, tmp_path)
  assert len(steps) == 1


class _Cut(Exception):
  """Ends a run between two checkpoints, like a kill."""


def train(config, workdir, monkeypatch, steps=None):
  """Trains, for so many steps if given; returns the networks compared."""
  found, build_match = [], adaptive.build_match
  taken = itertools.count(1)

  def build(student, terms):
    match = build_match(student, terms)

    def spy(network, frozen):
      found.append((jax.device_get(network.params), match(network, frozen)))
      return found[-1][1]

    return spy

  def requested():
    if next(taken) == steps:
      raise _Cut
    return False

  with monkeypatch.context() as patch:
    patch.setattr(adaptive, 'build_match', build)
    patch.setattr(training.distributed, 'stop_requested', requested)
    with pytest.raises(_Cut) if steps else contextlib.nullcontext():
      haikd.train(config, workdir)
  return found


def as_lists(pairs):
  return [[i, list(group)] for i, group in pairs]


@pytest.fixture
def staged(config):
  """Pairs of hint are found anew in the second stage of three."""
  config.steps, config.checkpoint_every = 6, 2
  config.evaluation.every = 6
  config.optimizer.learning_rate = 0.5
  adapt = lambda at: dict(layers=dict(kind='adaptive', monotone=False, at=at))
  config.losses.hint.update(adapt('stage'))
  config.losses.other = haikd.config.term(
      loss='feature_matching', layers='adaptive', align='project',
      align_options=dict(init='pca', rank=3, bias=False))
  config.optimizer.lr_multipliers = {'losses/other': 10.0}
  config.baseline = True  # It has no such parameters.
  config.stages = dict(late=dict(start=2), last=dict(
      start=5, losses=dict(hint=adapt('start'))))
  return config


def test_layers_are_paired_anew_where_a_stage_begins(
    staged, tmp_path, monkeypatch):
  found = train(staged, tmp_path, monkeypatch)
  # Those of hint in the last stage are what they are before the first step.
  assert [set(matched) for _, matched in found] == [{'hint', 'other'}, {'hint'}]
  start, late = (matched['hint'].pairs for _, matched in found)
  assert start != late
  layers = checkpoint.metadata(tmp_path)['layers']
  assert [x['hint'] for x in layers] == list(map(as_lists,
                                                 (start, late, start)))
  assert [x['other'] for x in layers] == [
      as_lists(found[0][1]['other'].pairs)] * 3
  assert set(adaptive.read(tmp_path)) == {'hint', 'other', 'hint, stage late'}


def test_a_term_may_compare_other_taps_in_another_stage(config, tmp_path):
  taps = dict(features='layer_*', embedding='layer_[01]')
  config.student.taps = config.teacher.taps = taps
  config.stages = dict(late=dict(start=1, losses=dict(
      hint=dict(loss='embedding_matching'))))
  haikd.train(config, tmp_path)
  layers = checkpoint.metadata(tmp_path)['layers']
  assert [len(x['hint']) for x in layers] == [STUDENT, 2]
  shapes = {name: np.shape(entry['similarity'])
            for name, entry in adaptive.read(tmp_path).items()}
  assert shapes == {'hint': (STUDENT, TEACHER), 'hint, stage late': (2, 2)}


@pytest.mark.slow
def test_a_run_that_is_killed_around_a_stage_has_its_pairs(
    staged, tmp_path, monkeypatch):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  found = train(staged, whole, monkeypatch)
  # One step of the teacher, six of the student alone, and three of the student,
  # of which two are kept.
  again = train(staged, killed, monkeypatch, steps=10)
  jax.tree.map(np.testing.assert_array_equal, again[1][0], found[1][0])
  again = train(staged, killed, monkeypatch, steps=3)  # Up to 5; 4 are kept.
  assert [as_lists(x['hint'].pairs) for _, x in again] == [
      as_lists(found[1][1]['hint'].pairs)]
  assert not train(staged, killed, monkeypatch)
  assert fingerprint.tree_hash(checkpoint.load_network(killed)) == (
      fingerprint.tree_hash(checkpoint.load_network(whole)))
  saved = [checkpoint.metadata(x)['layers'] for x in (whole, killed)]
  assert saved[0] == saved[1]


@pytest.mark.parametrize('options', (
    dict(align='project', align_options=dict(init='pca')),
    dict(align='project')))
def test_what_is_learned_for_other_layers_is_refused(config, options):
  config.losses.hint = haikd.config.term(
      loss='feature_matching', layers=dict(kind='adaptive', at='stage'),
      **options)
  config.stages = dict(late=dict(start=1))
  with registry.models.temporary():
    registry.register_model('parallel', replace=True)(uneven_layers)
    student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
    with pytest.raises(checks.ConfigError, match=(
        r"losses\.hint must not be adaptive with at='stage' where what is")):
      adaptive.check(student)


def test_layers_that_only_fit_as_they_begin_are_refused(config):
  """Those that `uniform` takes have one width, and others another."""

  def network(x, *, is_training, num_classes, depth=STUDENT):
    del is_training
    uniform = {round((i + 1) * depth / STUDENT) - 1 for i in range(STUDENT)}
    hidden = [hk.Linear(WIDTH + (i not in uniform), name=f'layer_{i}')(x)
              for i in range(depth)]
    return hk.Linear(num_classes, name='head')(jnp.concatenate(hidden, -1))

  config.losses.hint = haikd.config.term(
      loss='feature_matching', layers=dict(kind='adaptive', at='stage'),
      align='none')
  config.stages = dict(late=dict(start=1))
  with registry.models.temporary():
    registry.register_model('parallel', replace=True)(network)
    student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
    with pytest.raises(checks.ConfigError, match='or compared, depends'):
      adaptive.check(student)
    config.losses.hint.align = 'pool'
    adaptive.check(trainees.build(config, student.program.mesh))


@pytest.mark.parametrize('loss', ('kl_divergence', 'info_nce'))
def test_losses_without_layers_of_a_teacher_pair_none(config, loss):
  selection = dict(kind='adaptive', at='stage')
  config.losses = dict(hint=haikd.config.term(loss=loss, layers=selection))
  config.student.taps = dict(embedding='pairs')
  config.stages = dict(late=dict(start=1))
  with registry.models.temporary():
    registry.register_model('parallel', replace=True)(pairs_of_vectors)
    student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  adaptive.check(student)
  assert adaptive.settle(student, None, '') is student


def test_a_projection_starts_from_the_teachers_principal_components(config):
  config.losses.hint = haikd.config.term(
      loss='feature_matching', layers=((0, 5),), align='project',
      align_options=dict(init='pca'))
  student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  teacher = layers(np.random.default_rng(0), TEACHER)
  state = first_state.start(
      student.config, student.program, student.data,
      teachers.freeze(student.config, student.program, student.data,
                      variables(teacher)))
  project = state.params.align['hint']['0']['project']
  examples = np.stack([
      x['x'] for x in registry.datasets['numbers'].function('train')])
  states = np.float64(examples) @ teacher[5]
  np.testing.assert_allclose(project['b'], states.mean(0), atol=1e-5)
  values, vectors = np.linalg.eigh(np.cov(states.T))
  largest = vectors[:, np.argsort(values)[::-1][:5]].T  # Of rank 5, as inputs.
  np.testing.assert_allclose(np.abs(np.sum(project['w'][:5] * largest, axis=1)),
                             1, atol=1e-4)


@pytest.mark.slow
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
    dict(kind='adaptive', at='end'),
    dict(monotone=True)))
def test_other_dicts_are_refused(config, selection):
  config.losses.hint.layers = selection
  with pytest.raises(checks.ConfigError, match='layers must have a known form'):
    trainees.build(config, mesh_lib.build_mesh(config.mesh))
