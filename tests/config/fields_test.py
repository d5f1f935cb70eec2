"""The base config, and every kind of mistake in a config."""

import math

import ml_collections
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import checks


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
      label_smoothing=0.0,
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


def test_smoke_variant_evaluates_64_examples_of_a_split_or_slice():
  config = config_lib.base()
  config.evaluation.split, config.evaluation.final = 'train[98%:]', 'test'
  config = config_lib.variant(config, 'smoke')
  assert config.evaluation.split == 'train[:64]'
  assert config.evaluation.final == 'test[:64]'


def test_unknown_variant_is_refused():
  with pytest.raises(
      checks.ConfigError,
      match="^variant of a config must be smoke or left out; got 'x'. Write"):
    config_lib.variant(config_lib.base(), 'x')


def test_term_fills_in_defaults():
  term = config_lib.term(loss='x', layers=(0, 1))
  assert set(term) == {'loss', 'weight', 'layers', 'align', 'options',
                       'align_options'}
  assert (term.weight, term.align, term.layers) == (1.0, 'auto', (0, 1))


@pytest.mark.parametrize('field, value, match', (
    ('mesh.fsdp', 0, 'positive int, or -1'),
    ('mesh.replica', -1, 'at most one field of -1'),
    ('student.remat', 'some', 'one of none, gathers, dots, full'),
    ('student.placement', dict(w='all'), 'an axis, or None, for each glob'),
    ('teacher.taps', dict(features=3), 'a glob over names of modules, or a '),
    ('student.taps', dict(features=('block_0', 1)), 'or a tuple of them, for'),
))
def test_impossible_layout_is_refused(field, value, match):
  config = config_lib.base()
  group, name = field.split('.')
  config[group][name] = value
  with pytest.raises(checks.ConfigError, match=match):
    config_lib.validate(config)


def test_a_negative_weight_is_said(caplog):
  config = config_lib.base()
  config.losses.x = dict(loss='feature_matching', weight=-0.5)
  with caplog.at_level('INFO', 'haikd'):
    config_lib.validate(config)
  assert 'losses.x.weight is negative, so that training raises' in caplog.text


@pytest.mark.parametrize('field, value, match', (
    ('student.placement', {1: 2}, r'config\.student\.placement must have'),
    ('data.options', dict(a={2: 'x'}), r'config\.data\.options\.a must have')))
def test_keys_of_open_fields_are_texts(field, value, match):
  config = config_lib.base()
  group, name = field.split('.')
  config[group][name] = value
  with pytest.raises(checks.ConfigError, match=f'{match} texts as keys; got'):
    config_lib.validate(config)


@pytest.mark.parametrize('weight', (
    1e39, -1e10, dict(kind='piecewise', at=(4,), values=(0., 1e39))))
def test_a_weight_beyond_float32_is_refused(weight):
  config = config_lib.base()
  config.losses.x = dict(loss='feature_matching', weight=weight)
  with pytest.raises(checks.ConfigError, match='x.weight must lie between -1e'):
    config_lib.validate(config)


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
    ('distillation.alpha', 1.5,
     'alpha must lie between 0 and 1, or be None; got 1.5'),
    ('distillation.alpha', dict(kind='linear', start=0.5, end=1.5, steps=3),
     'alpha must lie between 0 and 1, or be None; got'),
    ('distillation.feature_loss_weight', 'much', 'number, or a dict of a sch'),
    ('distillation.temperature', 0.0, 'between 0.001 and 1,000; got 0.0'),
    ('distillation.temperature', 1e-30, 'between 0.001 and 1,000; got 1e-30'),
    ('distillation.temperature', 1e30, r'between 0.001 and 1,000; got 1e\+30'),
    ('losses.x', dict(loss='kl_divergence', options=dict(temperature=1e30)),
     r'losses\.x\.options\.temperature must lie between 0.001 and 1,000'),
    ('optimizer.learning_rate', -1.0, 'between 0 and 1,000,000; got -1.0'),
    ('optimizer.learning_rate', 1e9, 'between 0 and 1,000,000; got 1000000000'),
    ('optimizer.warmup_steps', -1, 'warmup_steps must be 0 or more; got -1'),
    ('optimizer.warmup_steps', 1001,
     'at most the 1000 steps of the run; got 1001. The learning rate would'),
    ('optimizer.final_fraction', 2.0, 'lie between 0 and 1; got 2.0'),
    ('optimizer.weight_decay', -0.1, 'be 0 or more; got -0.1'),
    ('optimizer.weight_decay', 1001.0,
     'weight_decay times learning_rate must be at most 1, all of .* got 1.001'),
    ('optimizer.clip_norm', 0.0, 'clip_norm must be None or positive; got 0.0'),
    ('optimizer.ema_decay', 1.0, 'be 0 or more, and below 1; got 1.0'),
    ('optimizer.options', dict(b1=1.0), 'b1 must be a number from 0 to'),
    ('optimizer.options', dict(b2=math.nan), 'b2 must be finite; got nan'),
    ('optimizer.options', dict(eps=0.0), 'eps must be a number above 0'),
    ('optimizer.options', dict(mu_dtype='int32'), 'mu_dtype must be a dtype'),
    ('optimizer.options', dict(dtype_momentum='flaot32'),
     'dtype_momentum must be a dtype'),
    ('teacher.train.optimizer.clip_norm', -1.0,
     r'^config\.teacher\.train\.optimizer\.clip_norm must be None or pos'),
    ('assistants.a', config_lib.assistant(optimizer=dict(learning_rate=-1.0)),
     r'^config\.assistants\.a\.optimizer\.learning_rate must lie'),
    ('microbatches', 0, 'config.microbatches must be positive; got 0'),
    ('losses.x', 3, 'config.losses.x must be a dict of fields; got 3'),
    ('losses.x', dict(weight=1.0), 'losses.x.loss must name a registered loss'),
    ('steps', None, 'config.steps must be of type int; got None'),
    ('data.train', None, 'config.data.train must be of type str; got None'),
    ('optimizer.learning_rate', None, 'must be of type float.* got None'),
    ('optimizer.learning_rate', math.inf, 'float, and finite; got inf'),
    ('distillation.temperature', math.nan, 'a finite number, or .* got nan'),
    ('distillation.temperature', dict(kind='linear', start=4.0, end=0.0,
                                      steps=3), 'temperature must lie'),
    ('distillation.temperature', dict(kind='linear', start='4', steps=3),
     'must be a schedule of finite numbers'),
    ('chunk_mib', 0, 'chunk_mib must be None or a positive number; got 0'),
    ('distillation.feature_match_layers', 2, 'a name or a dict; got 2'),
    ('evaluation.every', 0, r'every must be None or a positive int; got 0'),
    ('evaluation.every', 2.0, r'every must be None or a positive int; got 2.0'),
    ('evaluation.every', True, 'must be None or a positive int; got True'),
    ('evaluation.every', 'often', "None or a positive int; got 'often'"),
    ('seed', -1, r'config.seed must lie between 0 and 2 \*\* 32 - 1; got -1'),
    ('seed', 2**32, 'config.seed must lie between 0 and .*; got 4294967296'),
    ('teacher.train.steps', -1, 'steps must be 0 or more; got -1'),
    ('plugins', (3,), r'must be a tuple of names of modules; got \(3,\)'),
    ('sweep.weights', (), r'must be a tuple of positive numbers; got \(\)'),
    ('sweep.learning_rates', (1.0, -2.0), 'must be a tuple of positive'),
    ('sweep.methods', ('kl', 1), 'must be a tuple of names of variants'),
    ('plugins', 'my_plugin', "must be of type tuple; got 'my_plugin'"),
    ('data.mean', None, 'config.data.mean must be a finite number.*; got None'),
    ('data.mean', '0.5', "data.mean must be a finite number, or .*; got '0.5'"),
    ('data.mean', (0.5, math.nan), r'must be a finite number.*\(0.5, nan\)'),
    ('data.mean', (), r'must be a finite number.*; got \(\)'),
    ('data.std', 0, 'config.data.std must be above 0; got 0'),
    ('data.std', (0.5, -1.0), r'data.std must be above 0; got \(0.5, -1.0\)'),
    ('losses.x', dict(loss='x', weight='much'),
     "losses.x.weight must be a finite number, or a dict of .*; got 'much'"),
    ('losses.x', dict(loss='x', weight=None), 'weight must be a .*; got None'),
    ('losses.x', dict(loss='x', weight=True), 'weight must be a .*; got True'),
    ('losses.x', dict(loss='x', weight=math.nan), 'weight must .*; got nan'),
    ('losses.x', dict(loss='x', weight=dict(kind='linear', start='0')),
     'losses.x.weight must be a schedule of finite numbers; got'),
    ('losses.x', dict(loss='x', layers=3), 'x.layers must be None.*; got 3'),
    ('losses.x', dict(loss='x', align=None),
     "x.align must name .* aligner; got None. Write 'none', in quotes"),
    ('losses.x', dict(loss='x', options=2), 'options must be a dict; got 2'),
    ('losses.x', dict(loss='x', align_options=None),
     'align_options must be a dict; got None'),
    ('losses.x', dict(loss=3), 'loss must name a registered loss; got 3'),
    ('losses.x', dict(loss='kl_divergence', wait=1.0),
     r"losses\.x\.wait must be a field of a loss term\. Did you mean 'weight'"),
))
def test_mistake_is_refused(path, value, match):
  config = config_lib.base()
  *parents, last = path.split('.')
  group = config
  for name in parents:
    group = group[name]
  with group.ignore_type():
    group[last] = ml_collections.ConfigDict(value) if isinstance(
        value, dict) else value
  with pytest.raises(checks.ConfigError, match=match) as caught:
    config_lib.validate(config)
  assert str(caught.value).startswith('config.')


@pytest.mark.parametrize('path, value', (
    ('data.mean', (0.5, 0.4, 0.3)),
    ('data.std', [0.5, 1]),
    ('data.std', np.float32(0.5)),
    ('evaluation.every', 3),
    ('optimizer.clip_norm', 1),
    ('seed', 2**32 - 1),
    ('losses.x', dict(loss='their/loss')),
    ('losses.x', dict(loss='x', weight=2, layers=((0, 1), (1, 3)),
                      align='none', options=dict(delta=2.0))),
    ('losses.x', dict(loss='x', layers='last', weight=dict(
        kind='cosine', start=0, end=1.0, begin=3, steps=10))),
))
def test_value_is_accepted(path, value):
  config = config_lib.base()
  config.update_from_flattened_dict({path: value})
  config_lib.validate(config)


def test_field_that_is_missing_is_named():
  config = config_lib.base()
  del config.data.train
  with pytest.raises(
      checks.ConfigError,
      match=r'^config\.data\.train is missing\. Start the config from haikd'):
    config_lib.validate(config)


def test_int_is_accepted_for_a_float():
  config = config_lib.base()
  with config.distillation.ignore_type():
    config.distillation.alpha = 1
  config_lib.validate(config)


def test_a_config_prints_as_a_table():
  config = config_lib.base()
  config.student.options = dict(hidden=(4,))
  lines = str(config).splitlines()
  cells = {line.split()[0]: line.split(None, 1)[1] for line in lines}
  assert lines[0].split() == ['field', 'value', 'default']
  assert cells['steps'] == '1000' and 'losses' in cells
  assert cells['student.model'] == "'mlp'"
  assert cells['student.options'].split('  ')[0] == "{'hidden': (4,)}"
  assert cells['student.options'].endswith('  {}')
  # A copy is one too; without changes there is nothing to compare with.
  plain = str(config_lib.base().copy_and_resolve_references()).splitlines()
  assert plain[0].split() == ['field', 'value']
  assert len(plain) == len(lines)
