"""What a config becomes when a network says itself what it is."""

import types

import numpy as np
import pytest

import haikd
from haikd import config as config_lib
from haikd import interop
from haikd.core import checks
from haikd.core import registry
from haikd.data import source
from haikd.run import pretrained

FOUND = interop.Pretrained(
    'llama', dict(width=8, depth=6, heads=2, num_classes=50), 50, 'folder')


@pytest.fixture(autouse=True)
def described(monkeypatch):
  monkeypatch.setattr(interop, 'describe', lambda init: FOUND)
  with registry.datasets.temporary():

    @haikd.register_dataset()
    def texts(split, *, tokenizer=None, vocabulary=None, prune=False):
      raise NotImplementedError  # Is not opened.

    yield


def make_config(**data):
  config = config_lib.base()
  config.data.name = 'texts'
  config.data.options = data
  config.teacher.init = 'hf:teacher'
  return config


def test_model_and_options_are_those_of_the_weights():
  config = make_config()
  found = pretrained.resolve(config)
  assert found.teacher.model == 'llama'
  assert found.teacher.options.to_dict() == dict(width=8, depth=6, heads=2)
  assert found.student == config.student
  assert config.teacher.options.to_dict() == {}


def test_data_get_the_tokenizer_and_the_classes_of_the_teacher():
  found = pretrained.resolve(make_config())
  assert found.data.options.to_dict() == dict(tokenizer='folder', vocabulary=50)


def test_what_the_config_says_of_the_data_stands():
  options = dict(tokenizer='mine', vocabulary=60)
  found = pretrained.resolve(make_config(**options))
  assert found.data.options.to_dict() == options


def test_a_pruned_vocabulary_is_counted_by_the_data():
  found = pretrained.resolve(make_config(prune=True))
  assert found.data.options.to_dict() == dict(tokenizer='folder', prune=True)
  assert 'num_classes' not in found.teacher.options


def test_classes_stay_with_the_network_where_data_take_none():
  config = make_config()
  config.data.name, config.data.options = 'digits', {}
  found = pretrained.resolve(config)
  assert found.teacher.options.num_classes == 50
  assert found.data.options.to_dict() == {}


def test_classes_are_numbered_as_the_network_numbers_them(monkeypatch):
  monkeypatch.setattr(interop, 'describe', lambda init: FOUND._replace(
      classes=('yes', 'no')))
  assert 'classes' not in pretrained.resolve(make_config()).data.options

  @haikd.register_dataset()
  def classed(split, *, classes=()):
    raise NotImplementedError  # Is not opened.

  config = make_config()
  config.data.name, config.data.options = 'classed', {}
  assert pretrained.resolve(config).data.options.classes == ('yes', 'no')
  config.data.options = dict(classes=('no', 'yes'))
  assert pretrained.resolve(config).data.options.classes == ('no', 'yes')


def test_images_are_scaled_as_for_the_network_unless_the_config_says(
    monkeypatch):
  scale = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
  monkeypatch.setattr(interop, 'describe', lambda init: FOUND._replace(
      scale=scale))
  config = make_config()
  found = pretrained.resolve(config).data
  assert (found.mean, found.std) == scale
  config.data.std = 0.7
  found = pretrained.resolve(config).data
  assert (found.mean, found.std) == (0.0, 0.7)


def test_a_student_has_as_many_blocks_as_it_inherits_and_its_own_options():
  config = make_config()
  config.student.init = 'hf:teacher'
  config.student.init_layers = (0, 2, 4)
  config.student.options = dict(width=4)
  found = pretrained.resolve(config).student.options.to_dict()
  assert found == dict(width=4, depth=3, heads=2)


def test_resolving_twice_changes_nothing():
  config = make_config()
  config.student.init, config.student.init_layers = 'hf:x', (1, 5)
  once = pretrained.resolve(config)
  assert pretrained.resolve(once) == once


def test_another_model_is_refused():
  config = make_config()
  config.teacher.model = 'vit'
  with pytest.raises(checks.ConfigError, match="got 'vit' where it is 'llama'"):
    pretrained.resolve(config)


def test_layers_of_a_workdir_are_refused():
  config = make_config()
  config.student.init, config.student.init_layers = 'runs/x', (0,)
  with pytest.raises(checks.ConfigError, match='student.init_layers must be'):
    pretrained.resolve(config)


@pytest.mark.parametrize('layers', [(), (-1,), (0.5,), 3, ('a',)])
def test_layers_that_cannot_be_are_refused(layers):
  config = make_config()
  config.student.init_layers = layers
  with pytest.raises(checks.ConfigError, match='student.init_layers must be'):
    config_lib.validate(config)


def text_info(size, kept=None):
  return source.TextInfo('folder', size, kept)


def test_encoders_get_the_size_of_a_pruned_vocabulary():
  config = make_config()
  config.teacher.model, config.student.model = 'bert', 'llama'
  config.teacher.options = dict(vocabulary=50)
  found = pretrained.with_vocabulary(config, text_info(7, np.arange(7)))
  assert found.teacher.options.vocabulary == 7
  assert 'vocabulary' not in found.student.options
  assert pretrained.with_vocabulary(config, None) is config


def test_encoders_have_the_vocabulary_of_the_data_unless_it_is_larger():
  config = make_config()
  config.teacher.model = config.student.model = 'bert'
  config.teacher.options = dict(vocabulary=50)
  found = pretrained.with_vocabulary(config, text_info(40))
  assert found.teacher.options.vocabulary == 50
  assert found.student.options.vocabulary == 40


def test_an_encoder_with_fewer_tokens_than_the_data_is_refused():
  config = make_config()
  config.student.model = config.teacher.model = 'bert'
  config.student.options = dict(vocabulary=30)
  with pytest.raises(checks.ConfigError,
                     match='student.options.vocabulary must be no smaller'):
    pretrained.with_vocabulary(config, text_info(31))


@pytest.mark.parametrize('digests, differ', [('ab', True), ('aa', False)])
def test_networks_with_other_tokens_are_refused(monkeypatch, digests, differ):
  paths = dict(zip(('hf:teacher', 'hf:student'), digests))
  monkeypatch.setattr(interop, 'describe', lambda init: FOUND._replace(
      tokenizer=init))
  monkeypatch.setattr(
      pretrained.tokenizer_lib, 'load',
      lambda path: types.SimpleNamespace(digest=paths[path]))
  config = make_config()
  config.student.init = 'hf:student'
  if not differ:
    pretrained.resolve(config)
    return
  with pytest.raises(checks.ConfigError, match='must have one tokenizer'):
    pretrained.resolve(config)
