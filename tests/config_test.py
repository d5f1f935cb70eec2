"""The base config, and every kind of mistake in one."""

import ml_collections
import pytest

from haikd import checks
from haikd import config as config_lib


def test_base_is_valid_and_fresh():
  config = config_lib.base()
  config_lib.validate(config)
  config.steps = 3
  config.student.options.width = 4
  assert config_lib.base().steps != 3
  assert 'width' not in config_lib.base().student.options


def test_distillation_has_the_documented_fields_and_defaults():
  assert config_lib.base().distillation.to_dict() == dict(
      temperature=2.0,
      alpha=0.9,
      use_attention_transfer=False,
      attention_loss_weight=0.1,
      attention_match_layers=None,
      use_feature_matching=False,
      feature_loss_weight=0.1,
      feature_match_layers=None)


def test_smoke_variant_is_short_and_valid():
  config = config_lib.base()
  config.teacher.train.steps = 1000
  config = config_lib.variant(config, 'smoke')
  config_lib.validate(config)
  assert config.steps + config.teacher.train.steps <= 10


def test_unknown_variant_is_refused():
  with pytest.raises(checks.ConfigError, match="smoke or left out; got 'x'"):
    config_lib.variant(config_lib.base(), 'x')


def test_term_fills_in_what_is_not_given():
  term = config_lib.term(loss='x', layers=(0, 1))
  assert set(term) == set(config_lib.TERM_FIELDS)
  assert (term.weight, term.align, term.layers) == (1.0, 'pool', (0, 1))


@pytest.mark.parametrize('layers', (None, (0, 1), [[0, 1]], 'last'))
def test_layers_may_be_of_any_form(layers):
  config = config_lib.base()
  config.distillation.feature_match_layers = layers
  config_lib.validate(config)


@pytest.mark.parametrize('path, value, match', (
    ('stepz', 3, r'config\.stepz must be a field .* Did you mean .steps.'),
    ('student.modle', 'vit', r"config\.student\.modle .* Did you mean 'model'"),
    ('teacher.train.optimizer.lr', 1.0,
     r'config\.teacher\.train\.optimizer\.lr must be a field'),
    ('steps', 'three', "config.steps must be of type int; got 'three'"),
    ('steps', True, 'config.steps must be of type int; got True'),
    ('steps', 1.5, 'config.steps must be of type int'),
    ('student', 'vit', "config.student must be a dict of fields; got 'vit'"),
    ('student.options', 3, 'config.student.options must be a dict; got 3'),
    ('student.precision', 'float8', 'float32, bfloat16, float16; got .float8.'),
    ('distillation.alpha', 1.5, 'alpha must lie between 0 and 1; got 1.5'),
    ('distillation.temperature', 0.0, 'temperature must be positive; got 0.0'),
    ('microbatches', 0, 'config.microbatches must be positive; got 0'),
    ('losses.x', 3, 'config.losses.x must be a dict of fields; got 3'),
    ('losses.x', dict(weight=1.0), 'losses.x.loss must name a registered loss'),
    ('losses.x', dict(loss='kl_divergence', wait=1.0),
     r"losses\.x\.wait must be a field of a loss term\. Did you mean 'weight'"),
))
def test_mistake_is_refused(path, value, match):
  config = config_lib.base()
  *way, last = path.split('.')
  node = config
  for name in way:
    node = node[name]
  with node.ignore_type():
    node[last] = ml_collections.ConfigDict(value) if isinstance(
        value, dict) else value
  with pytest.raises(checks.ConfigError, match=match):
    config_lib.validate(config)


def test_field_that_is_missing_is_named():
  config = config_lib.base()
  del config.data.train
  with pytest.raises(checks.ConfigError, match='config.data.train must be th'):
    config_lib.validate(config)


def test_whole_number_stands_for_a_float():
  config = config_lib.base()
  with config.distillation.ignore_type():
    config.distillation.alpha = 1
  config_lib.validate(config)
