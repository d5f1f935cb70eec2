"""What weights and data fill in in a config."""

import numpy as np
import pytest

import haikd
from haikd import config as config_lib
from haikd import interop
from haikd.core import checks
from haikd.core import registry
from haikd.data import source
from haikd.run import resolve

DESCRIBED = interop.Pretrained(
    'llama', dict(width=8, depth=6, heads=2, num_classes=50), 50, 'folder')


def describe(monkeypatch, described):
  """Makes all pretrained weights those of one network."""
  monkeypatch.setattr(interop, 'describe', lambda init, **unused: described)


@pytest.fixture(autouse=True)
def described(monkeypatch):
  describe(monkeypatch, DESCRIBED)
  with registry.datasets.temporary():

    @haikd.register_dataset()
    def texts(split, *, tokenizer=None, vocabulary=None, prune=False):
      raise NotImplementedError  # It is never opened.

    yield


def make_config(**data):
  config = config_lib.base()
  config.data.name = 'texts'
  config.data.options = data
  config.teacher.init = 'hf:teacher'
  return config


def test_model_and_options_are_those_of_the_weights():
  config = make_config()
  resolved = resolve.from_pretrained(config)
  assert resolved.teacher.model == 'llama'
  assert resolved.teacher.options.to_dict() == dict(width=8, depth=6, heads=2)
  assert resolved.student == config.student
  assert config.teacher.options.to_dict() == {}


def test_data_gets_the_tokenizer_and_the_classes_of_the_teacher():
  resolved = resolve.from_pretrained(make_config())
  assert resolved.data.options.to_dict() == dict(
      tokenizer='folder', vocabulary=50)


def test_options_of_the_data_in_the_config_take_precedence():
  options = dict(tokenizer='folder', vocabulary=60)
  resolved = resolve.from_pretrained(make_config(**options))
  assert resolved.data.options.to_dict() == options


def test_a_pruned_vocabulary_is_counted_by_the_data():
  resolved = resolve.from_pretrained(make_config(prune=True))
  assert resolved.data.options.to_dict() == dict(tokenizer='folder', prune=True)
  assert 'num_classes' not in resolved.teacher.options


def test_classes_stay_with_the_network_if_the_data_takes_none():
  haikd.register_dataset('bare')(lambda split: None)  # It is never opened.
  config = make_config()
  config.data.name, config.data.options = 'bare', {}
  resolved = resolve.from_pretrained(config)
  assert resolved.teacher.options.num_classes == 50
  assert resolved.data.options.to_dict() == {}


def test_classes_are_in_the_order_of_the_network(monkeypatch):
  describe(monkeypatch, DESCRIBED._replace(classes=('yes', 'no')))
  assert 'classes' not in resolve.from_pretrained(make_config()).data.options

  @haikd.register_dataset()
  def classed(split, *, classes=()):
    raise NotImplementedError  # It is never opened.

  config = make_config()
  config.data.name, config.data.options = 'classed', {}
  assert resolve.from_pretrained(config).data.options.classes == ('yes', 'no')
  config.data.options = dict(classes=('no', 'yes'))
  assert resolve.from_pretrained(config).data.options.classes == ('no', 'yes')


def test_images_are_scaled_for_the_network_unless_the_config_does(
    monkeypatch):
  scale = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
  describe(monkeypatch, DESCRIBED._replace(scale=scale))
  config = make_config()
  resolved = resolve.from_pretrained(config).data
  assert (resolved.mean, resolved.std) == scale
  config.data.std = 0.7
  resolved = resolve.from_pretrained(config).data
  assert (resolved.mean, resolved.std) == (0.0, 0.7)


def test_a_student_has_as_many_blocks_as_it_inherits_and_its_own_options():
  config = make_config()
  config.student.init = 'hf:teacher'
  config.student.init_layers = (0, 2, 4)
  config.student.options = dict(width=4)
  resolved = resolve.from_pretrained(config).student.options.to_dict()
  assert resolved == dict(width=4, depth=3, heads=2)


@pytest.mark.parametrize('layers, chosen', (
    ((0, 3), (1,)), ((3, 2), (0, 1)), ((0, 1), ()), (None, (2, 3))))
def test_options_that_hold_blocks_are_cut_with_them(
    monkeypatch, layers, chosen):
  options = dict(DESCRIBED.options, depth=4, window=8, window_layers=(2, 3))
  describe(monkeypatch, DESCRIBED._replace(options=options))
  config = make_config()
  config.student.init, config.student.init_layers = 'hf:x', layers
  resolved = resolve.from_pretrained(config).student.options
  assert resolved.window_layers == chosen


def test_path_without_its_prefix_gets_it(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
  for init, prefix in ((f'{tmp_path}', 'hf:'), ('x/model.gguf', 'gguf:')):
    config = make_config()
    config.student.init = init
    with pytest.raises(checks.ConfigError,
                       match=f"got '{init}'. Set it to '{prefix}{init}'."):
      resolve.from_pretrained(config)


def test_nothing_of_a_workdir_is_ignored():
  config = make_config()
  config.student.init = 'runs/x'
  config.student.init_options.ignore = ('x',)
  with pytest.raises(checks.ConfigError, match=(
      r'student.init_options.ignore must be \(\) unless init begins with hf:')):
    resolve.from_pretrained(config)


def test_resolving_twice_changes_nothing():
  config = make_config()
  config.student.init, config.student.init_layers = 'hf:x', (1, 5)
  once = resolve.from_pretrained(config)
  assert resolve.from_pretrained(once) == once


def test_another_model_is_refused():
  config = make_config()
  config.teacher.model = 'vit'
  with pytest.raises(checks.ConfigError, match="got 'vit' where it is 'llama'"):
    resolve.from_pretrained(config)


def test_layers_of_a_workdir_are_refused():
  config = make_config()
  config.student.init, config.student.init_layers = 'runs/x', (0,)
  with pytest.raises(checks.ConfigError, match='student.init_layers must be'):
    resolve.from_pretrained(config)


@pytest.mark.parametrize('layers', [(), (-1,), (0.5,), 3, ('a',)])
def test_invalid_layers_are_refused(layers):
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
  resolved = resolve.with_vocabulary(config, text_info(7, np.arange(7)))
  assert resolved.teacher.options.vocabulary == 7
  assert 'vocabulary' not in resolved.student.options
  assert resolve.with_vocabulary(config, None) is config


def test_encoders_have_the_vocabulary_of_the_data_unless_it_is_larger():
  config = make_config()
  config.teacher.model = config.student.model = 'bert'
  config.teacher.options = dict(vocabulary=50)
  resolved = resolve.with_vocabulary(config, text_info(40))
  assert resolved.teacher.options.vocabulary == 50
  assert resolved.student.options.vocabulary == 40


def test_an_encoder_with_fewer_tokens_than_the_data_is_refused():
  config = make_config()
  config.student.model = config.teacher.model = 'bert'
  config.student.options = dict(vocabulary=30)
  with pytest.raises(checks.ConfigError,
                     match='student.options.vocabulary must be no smaller'):
    resolve.with_vocabulary(config, text_info(31))


def test_a_teacher_that_is_trained_has_texts_in_its_own_tokens():
  config = make_config(tokenizer='folder', student_tokenizer='other')
  config.teacher.init, config.teacher.train.steps = None, 3
  resolved = resolve.teacher_training(config)
  assert resolved.data.options.to_dict() == dict(tokenizer='folder')
