"""haikd from Python: train, evaluate, load, with weights and arrays given."""

import pathlib
import runpy

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import data as data_lib
from haikd import library  # noqa: F401  Registers all there is.
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.storage import archive

EXAMPLES = pathlib.Path(__file__).parents[1] / 'docs' / 'examples'


@pytest.fixture(autouse=True)
def own_names():
  with registry.models.temporary(), registry.datasets.temporary():
    yield


def small_config(**fields):
  config = haikd.config.base()
  config.steps = 2
  config.batch_size = 8
  config.teacher.train.steps = 2
  config.student.options = dict(hidden=(4,))
  config.teacher.options = dict(hidden=(8,))
  config.update_from_flattened_dict(fields)
  return config


def images(split, dtype=np.uint8):
  rng = np.random.default_rng(len(split))
  return dict(image=rng.integers(0, 256, (16, 4, 4, 1)).astype(dtype),
              label=rng.integers(0, 3, 16))


def data_of(make=images):
  return data_lib.from_arrays(
      **{split: make(split) for split in ('train', 'validation', 'test')})


def test_example_of_ones_own_weights(capsys):
  """The student that is served computes what its parameters do by hand."""
  example = runpy.run_path(str(EXAMPLES / 'your_weights.py'))
  results, student, x = example['main']()
  assert set(results) == {'teacher', 'student'}
  by_hand = hk.transform_with_state(lambda x: example['perceptron'](
      x, is_training=False, num_classes=3, width=8))
  logits, _ = by_hand.apply(student.params, student.state, None, x)
  np.testing.assert_allclose(student.apply(x), logits, rtol=1e-5, atol=1e-6)
  hidden, = student.features(x)['features']
  assert hidden.shape == (600, 8) and (hidden >= 0).all()
  assert capsys.readouterr().out.splitlines()[-1].count(', ') == 4


def test_example_of_ones_own_data(capsys):
  """The same rows as a CSV and as an Arrow folder give the same student."""
  example = runpy.run_path(str(EXAMPLES / 'your_data.py'))
  results = example['main']()
  for scores in results.values():
    assert scores['teacher']['accuracy'] > 0.9
    assert scores['student']['accuracy'] > 0.6
    del scores['teacher']['seconds'], scores['student']['seconds']
  assert results['table'] == results['arrow']
  assert capsys.readouterr().out.splitlines()[-1] == 'cat, dog, eel'


def test_a_loaded_network_scales_images_as_in_training(tmp_path):
  config = small_config(**{'data.mean': 0.5, 'data.std': 0.25})
  results = haikd.train(config, tmp_path, data=data_of())
  again = haikd.evaluate(config, tmp_path, data=data_of())
  for scores in (*results.values(), *again.values()):
    del scores['seconds']  # Those of evaluation are not saved.
  assert again == results
  raw = images('test')['image']
  for which in ('student', 'teacher'):
    network = haikd.load(tmp_path, which)
    width = 8 if which == 'teacher' else 4
    by_hand = hk.transform_with_state(
        lambda x, width=width: hk.nets.MLP((width, 3))(hk.Flatten()(x)))
    layers = list(network.params.values())
    assert len(layers) == 2
    names = list(by_hand.init(jax.random.key(0), raw[:1] / 255)[0])
    logits, _ = by_hand.apply(
        dict(zip(names, layers)), {}, None, (raw / 255 - 0.5) / 0.25)
    np.testing.assert_allclose(
        network.apply(raw), logits, rtol=1e-4, atol=1e-5)
  predicted = np.argmax(haikd.load(tmp_path).apply(raw), -1)
  hits = predicted == images('test')['label']
  assert np.mean(hits) == pytest.approx(results['student']['accuracy'])


def test_a_loaded_network_resizes_images_as_in_evaluation(tmp_path):
  def large(split):
    rng = np.random.default_rng(len(split))
    return dict(image=rng.integers(0, 256, (16, 9, 7, 1), np.uint8),
                label=rng.integers(0, 3, 16))

  results = haikd.train(small_config(**{'data.image_size': 4}), tmp_path,
                        data=data_of(large))
  predicted = np.argmax(haikd.load(tmp_path).apply(large('test')['image']), -1)
  assert np.mean(predicted == large('test')['label']) == pytest.approx(
      results['student']['accuracy'])


def test_a_tap_that_no_loss_used_does_not_stop_apply(tmp_path):
  config = small_config(**{'student.taps': dict(other='no_such_module')})
  haikd.train(config, tmp_path, data=data_of())
  student = haikd.load(tmp_path)
  assert student.apply(images('test')['image']).shape == (16, 3)
  with pytest.raises(checks.ConfigError, match="got 'no_such_module'"):
    student.features(images('test')['image'])


def test_inputs_other_than_in_training_are_refused(tmp_path):
  haikd.train(small_config(), tmp_path, data=data_of())
  student = haikd.load(tmp_path)
  with pytest.raises(checks.DataError, match='inputs must be one array; got a '
                     'dict of image'):
    student.apply(dict(image=images('test')['image']))
  with pytest.raises(checks.DataError, match=r'must be \[B, 4, 4, 1\] of '):
    student.apply(np.zeros((2, 16), np.float32))


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(checks.ConfigError, match="Did you mean 'student'"):
    haikd.load(tmp_path, 'studen')
  with pytest.raises(checks.DataError, match='workdir must hold a checkpoint'):
    haikd.load(tmp_path)
  with pytest.raises(AttributeError, match="no attribute 'trian'"):
    haikd.trian  # pylint: disable=pointless-statement
  assert {'train', 'evaluate', 'load', 'data', 'save_network'} <= set(
      dir(haikd))


def test_given_data_and_config_stay_the_callers(tmp_path):
  config = small_config()
  before = config.to_json()
  haikd.train(config, tmp_path, data=data_of())
  assert config.to_json() == before
  assert 'given' not in registry.datasets.names()


@pytest.mark.parametrize('label, num_classes', (
    ([0, 2], 3), ([True, False], 2), (['b', 'a'], 2),
    ([[0.5, 0.5], [0.1, 0.9]], 2), ([[1.0, 1.0], [0.0, 0.0]], 2),
    ([0.5, 2.0], None), ([[0.5, 2.0], [1.0, 1.0]], None),
    ([[1.0], [0.0]], None), ([-100, -100], None), ([-100, 4], 5),
    (np.array(['b', 'a'], object), 2), (np.array(['b', 'ä']).astype(object), 2),
    ([b'x', b'y'], 2), (np.array([[True, False, True], [False] * 3]), 3),
    ([[0.5005, 0.5005], [0.1, 0.9]], 2),
))
def test_classes_follow_from_labels(label, num_classes):
  made = data_lib.from_arrays(train=dict(x=[1, 2], label=label))('train')
  assert made.num_classes == num_classes


def test_names_of_classes_are_numbered_over_all_splits():
  made = data_lib.from_arrays(train=dict(x=[1, 2], label=['eel', 'cat']),
                              test=dict(x=[1], label=['dog']))
  assert made('train').columns['label'].tolist() == [2, 0]
  assert made('test').columns['label'].tolist() == [1]
  assert made('test').class_names == ('cat', 'dog', 'eel')


@pytest.mark.parametrize('labels', (np.arange(16),
                                    np.arange(48).reshape(16, 3)))
def test_integers_may_be_numbers_to_predict(tmp_path, labels):
  made = data_of(lambda split: dict(
      image=images(split)['image'], label=labels))
  results = haikd.train(small_config(task='regression'), tmp_path, data=made)
  predicted = haikd.load(tmp_path).apply(images('test')['image'])
  assert predicted.shape == (16, labels.size // 16)
  assert results['student']['mse'] == pytest.approx(
      np.mean((np.asarray(predicted).reshape(labels.shape) - labels)**2))


def test_names_in_one_split_alone_are_refused():
  with pytest.raises(checks.DataError, match='in all splits or in none'):
    data_lib.from_arrays(train=dict(x=[1], label=['a']),
                         test=dict(x=[1], label=[0]))


def test_data_beside_a_mixture_is_refused(tmp_path):
  config = small_config()
  config.data.mixture = dict(a=1.0)
  with pytest.raises(checks.ConfigError, match='data must be None with'):
    haikd.train(config, tmp_path, data=data_of())


def test_arrays_without_a_split_are_refused():
  with pytest.raises(checks.ConfigError, match='splits must have the columns'):
    data_lib.from_arrays()
  with pytest.raises(checks.DataError, match="Did you mean 'train'"):
    data_lib.from_arrays(train=dict(x=[1]))('trian')


class TestArchive:
  """`npz:` weights, whole and spoilt."""

  PARAMS = {'a/~/b': dict(w=np.ones((2, 3)), b=np.zeros(3))}
  STATE = {'a': dict(mean=np.full(3, 2.0))}

  def expected(self, params=None, state=None):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return base.Variables(*jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=device),
        (params or self.PARAMS, self.STATE if state is None else state)))

  def test_names_are_those_of_haiku(self, tmp_path):
    haikd.save_network(tmp_path / 'x', self.PARAMS, self.STATE)
    with np.load(tmp_path / 'x.npz') as saved:
      assert set(saved.files) == {'a/~/b/w', 'a/~/b/b', 'state:a/mean'}

  def test_what_is_read_is_what_was_written(self, tmp_path):
    haikd.save_network(tmp_path / 'x.npz', self.PARAMS, self.STATE)
    init = f'npz:{tmp_path}/x.npz'
    archive.check('init', init, self.expected())
    read = archive.load('init', init, self.expected())
    jax.tree.map(np.testing.assert_array_equal, tuple(read),
                 (self.PARAMS, self.STATE))

  def test_every_difference_is_listed(self, tmp_path):
    haikd.save_network(tmp_path / 'x.npz', {
        'a/~/b': dict(w=np.ones((3, 2))), 'c': dict(w=np.ones(1))}, self.STATE)
    with pytest.raises(checks.DataError) as caught:
      archive.check('init', f'npz:{tmp_path}/x.npz', self.expected())
    message = str(caught.value)
    assert 'no a/~/b/b float32[3]' in message
    assert 'a/~/b/w float32[3, 2] instead of float32[2, 3]' in message
    assert 'a surplus c/w float32[1]' in message

  @pytest.mark.parametrize('content, match', (
      (None, 'which is no file'), (b'', 'Write it with haikd.save_network'),
      (b'PK\x03\x04 broken', 'Write it with haikd.save_network'),
      ('array', 'Write it with haikd.save_network'),
      ('pickle', 'without pickles')))
  def test_no_archive_is_one_line(self, tmp_path, content, match):
    path = tmp_path / 'x.npz'
    if isinstance(content, bytes):
      path.write_bytes(content)
    elif content == 'array':
      with open(path, 'wb') as file:
        np.save(file, np.ones(3))
    elif content == 'pickle':
      np.savez(path, **{'a/~/b/w': np.array([dict()])})
    with pytest.raises(checks.DataError, match=match):
      archive.check('init', f'npz:{path}', self.expected())

  def test_bfloat16_is_written_as_float32(self, tmp_path):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), self.PARAMS)
    haikd.save_network(tmp_path / 'x.npz', params, self.STATE)
    read = archive.load('init', f'npz:{tmp_path}/x.npz', self.expected())
    assert read.params['a/~/b']['w'].dtype == jnp.float32

  def test_arrays_of_no_numbers_are_refused(self, tmp_path):
    np.savez(tmp_path / 'x.npz', **{
        'a/~/b/w': np.zeros((2, 3), 'V2'), 'a/~/b/b': np.zeros(3),
        'state:a/mean': np.zeros(3)})
    with pytest.raises(checks.DataError, match='must hold a/~/b/w as float32'):
      archive.check('init', f'npz:{tmp_path}/x.npz', self.expected())

  def test_a_bucket_is_refused(self):
    with pytest.raises(ValueError, match='path must be local'):
      haikd.save_network('gs://bucket/x.npz', self.PARAMS)

  def test_trees_of_another_form_are_refused(self, tmp_path):
    with pytest.raises(ValueError, match='as Haiku has it; got ndarray'):
      haikd.save_network(tmp_path / 'x', dict(w=np.ones(3)))


def test_weights_by_the_command_line(run, tmp_path):
  """A student goes on from an archive; a path without npz: is put right."""
  code, _, err = run(workdir='first')
  assert code == 0, err
  first = haikd.load(tmp_path / 'first')
  haikd.save_network(tmp_path / 'x.npz', first.params, first.state)
  code, _, err = run(f'--config.student.init=npz:{tmp_path}/x.npz',
                     workdir='second')
  assert code == 0, err
  code, _, err = run(f'--config.student.init={tmp_path}/x.npz', workdir='third')
  assert code == 2 and f"Set it to 'npz:{tmp_path}/x.npz'" in err
  code, _, err = run(f'--config.student.init=npz:{tmp_path}/x.npz',
                     '--config.student.options={"hidden": (5,)}',
                     workdir='fourth')
  assert code == 3 and 'must hold the parameters of this network' in err
