"""Losses with parameters of their own, as a plugin brings them."""

import json
import textwrap

import jax
import numpy as np
import pytest

import haikd
from haikd.storage import checkpoint
from haikd.storage import leaves as leaves_lib
from haikd.storage import step_folder

PLUGIN = """
    import haiku as hk
    import jax
    import jax.numpy as jnp
    import haikd

    @haikd.register_loss(on='features')
    def variational(student, teacher, *, mask):
      # The teacher's features by a learned map, with a learned deviation.
      mean = hk.Linear(teacher.shape[-1])(student)
      log_deviation = hk.get_parameter(
          'log_deviation', teacher.shape[-1:], init=jnp.zeros)
      error = (teacher - mean) / jnp.exp(log_deviation)
      return haikd.masked_mean(jnp.square(error) / 2 + log_deviation, mask)

    @haikd.register_loss(on='features', any_width=True)
    def wide_alone(student, teacher, *, mask):
      # Learns in layers of one width, and in no others.
      if student.shape[-1] == 8:
        student = hk.Linear(teacher.shape[-1])(student)
      return haikd.masked_mean(jnp.square(student - teacher), mask)

    @haikd.register_loss(on='logits', additive=True)
    def scaled_logits(student, teacher, *, mask):
      scale = hk.get_parameter('scale', (), init=jnp.ones)
      return haikd.masked_mean(jnp.square(scale * student - teacher), mask)

    @haikd.register_loss(on='logits', relational=True)
    def prototypes(student, teacher=None, *, mask, labels=None):
      known = hk.get_parameter('known', (3, student.shape[-1]), init=jnp.zeros)
      return haikd.masked_mean(jnp.square(student - known[labels]), mask)
"""


@pytest.fixture
def train(run, tmp_path):
  """Trains with a loss; returns its parameters by name, and the student's."""
  (tmp_path / 'my_learned.py').write_text(textwrap.dedent(PLUGIN))
  source = (tmp_path / 'tiny.py').read_text()
  (tmp_path / 'learned.py').write_text(source.replace(
      'return', "config.plugins = ('my_learned',)\n  return"))

  def call(loss, *flags, workdir='run', align='none', **options):
    code, _, err = run(
        f'--config.losses.own.loss={loss}',
        f'--config.losses.own.align={align}',
        *(f'--config.{flag}' for flag in flags), workdir=workdir,
        config='learned.py', **options)
    assert code == 0, err
    folder = checkpoint.newest(tmp_path / workdir)
    shapes = leaves_lib.select(
        step_folder.read_shapes(folder), 'params', 'align', 'own')
    saved = step_folder.read_leaves(folder, shapes, as_numpy=True)
    return leaves_lib.nest(saved, 3), checkpoint.load_network(
        tmp_path / workdir)

  return call


@pytest.mark.mesh
@pytest.mark.parametrize('loss, align, names', (
    pytest.param('variational', 'none', {'loss/linear', 'loss'},
                 marks=pytest.mark.slow),
    # Beside what the aligner learns.
    pytest.param('variational', 'project', {'loss/linear', 'loss', 'project'},
                 marks=pytest.mark.slow),
    ('scaled_logits', 'none', {'loss'}),
    ('prototypes', 'none', {'loss'}),
))
def test_what_a_loss_learns_is_trained_on_every_mesh(
    train, tmp_path, loss, align, names):
  flags = ('losses.own.layers=last', 'student.options.hidden=(4,8)',
           'optimizer.learning_rate=0.1')
  if loss == 'variational':
    flags += ('teacher.options.hidden=(8,8)',)
  else:
    flags = flags[1:]
  copies, student = train(loss, *flags, 'mesh.fsdp=1', 'mesh.replica=8',
                          align=align, workdir='copies')
  assert {name for layer in copies.values() for name in layer} == names
  initial = 1.0 if loss == 'scaled_logits' else 0.0
  for layer in copies.values():
    assert all(np.all(value != initial) for value in layer['loss'].values())
  # With microbatches a relational loss sees one of them at a time.
  split, other = train(
      loss, *flags, 'mesh.fsdp=8', 'mesh.replica=1',
      f'microbatches={1 if loss == "prototypes" else 2}', align=align,
      workdir='split')
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
               (copies, student), (split, other))
  assert not any('loss' in name for name in student[0])


def test_aligner_and_loss_begin_with_other_numbers(train):
  learned, _ = train(
      'variational', 'losses.own.layers=last', 'student.options.hidden=(4,8)',
      'teacher.options.hidden=(8,8)', 'steps=1', 'optimizer.learning_rate=0.0',
      align='project')
  project, linear = (learned['0'][name]['w']
                     for name in ('project', 'loss/linear'))
  assert project.shape == linear.shape == (8, 8)
  # Of one distribution: equal keys would give equal numbers.
  assert abs(np.corrcoef(project.ravel(), linear.ravel())[0, 1]) < 0.5


@pytest.mark.slow
def test_a_loss_of_a_language_model_may_learn(
    train, run, tmp_path, write_language_model):
  config = write_language_model(
      'lm.py', name='synthetic',
      options=dict(kind='tokens', size=20, length=6, vocabulary=11))
  (tmp_path / 'lm.py').write_text(config.read_text().replace(
      'return config', "config.plugins = ('my_learned',)\n"
      "  config.losses.own = dict(loss='scaled_logits')\n  return config"))
  code, _, err = run(config='lm.py')
  assert code == 0, err
  folder = checkpoint.newest(tmp_path / 'run')
  scale, = step_folder.read_leaves(folder, leaves_lib.select(
      step_folder.read_shapes(folder), 'params', 'align', 'own'),
      as_numpy=True).values()
  assert scale != 1.0  # One step has moved it.


def test_a_loss_may_learn_in_some_layers_alone(train):
  learned, _ = train(
      'wide_alone', 'student.options.hidden=(4,8)',
      'teacher.options.hidden=(6,8)', align='project')
  assert {layer: set(names) for layer, names in learned.items()} == {
      '0': {'project'}, '1': {'project', 'loss/linear'}}


def test_a_run_with_a_learning_loss_goes_on(train):
  whole, student = train('scaled_logits', workdir='whole',
                         *('optimizer.schedule=constant',))
  train('scaled_logits', 'steps=4', 'optimizer.schedule=constant')
  resumed, other = train('scaled_logits', 'optimizer.schedule=constant')
  jax.tree.map(np.testing.assert_array_equal, (whole, student),
               (resumed, other))


SEVERAL = """
    import jax.numpy as jnp
    import haikd

    @haikd.register_loss(on=('features', 'attention'))
    def states_and_maps(student, teacher, *, mask):
      assert set(student) == set(teacher) == {'features', 'attention'}
      states = haikd.masked_mean(
          jnp.square(student['features'] - teacher['features']), mask)
      maps = haikd.masked_mean(jnp.square(
          student['attention'] - teacher['attention']).sum(axis=(1, 3)), mask)
      return haikd.LossSum(
          states.total / 16 + maps.total, maps.count)

    @haikd.register_loss(on='features')
    def states(student, teacher, *, mask):
      total, count = haikd.masked_mean(jnp.square(student - teacher), mask)
      return haikd.LossSum(total / 16, count / 16)

    @haikd.register_loss(on='attention')
    def maps(student, teacher, *, mask):
      return haikd.masked_mean(
          jnp.square(student - teacher).sum(axis=(1, 3)), mask)
"""


@pytest.mark.slow
def test_a_loss_on_several_taps_is_that_of_each(run, tmp_path):
  """Features of width 16 and maps, over devices, pooled and projected."""
  (tmp_path / 'my_several.py').write_text(textwrap.dedent(SEVERAL))
  options = 'dict(patch_size=2, width=16, depth=1, heads={}, mlp_ratio=1.0)'
  source = (tmp_path / 'tiny.py').read_text().replace('return', (
      "config.plugins = ('my_several',)\n"
      "  config.student.model = config.teacher.model = 'vit'\n"
      f'  config.teacher.options = {options.format(4)}\n'
      f'  config.student.options = {options.format(2)}\n'
      '  config.steps, config.log_every = 2, 1\n'
      '  if together:\n'
      "    config.losses.both = dict(loss='states_and_maps')\n"
      '  else:\n'
      "    config.losses.states = dict(loss='states')\n"
      "    config.losses.maps = dict(loss='maps')\n  return"))
  losses = []
  for together in (True, False):
    (tmp_path / 'several.py').write_text(
        source.replace('if together', f'if {together}'))
    code, _, err = run(config='several.py', workdir=str(together))
    assert code == 0, err
    rows = (tmp_path / str(together) / 'metrics.jsonl').read_text().splitlines()
    losses.append([json.loads(row)['loss'] for row in rows
                   if '"train"' in row])
  np.testing.assert_allclose(*losses, rtol=1e-5)
  (tmp_path / 'several.py').write_text(
      source.replace('depth=1', 'depth=2').replace(
          'if together',
          'config.student.taps = dict(features="block_0")\n  if True'))
  code, _, err = run(config='several.py', workdir='other')
  assert code == 2
  assert 'the taps of one loss must have the same layers; got' in err


@pytest.mark.parametrize('options', (
    dict(on=('features',)), dict(on=('features', 'logits')),
    dict(on=('features', 'attention'), additive=True)))
def test_taps_that_cannot_go_together_are_refused(options):
  with pytest.raises(ValueError, match='^on must be two taps or more'):
    haikd.register_loss(**options)(lambda student, teacher, *, mask: None)
