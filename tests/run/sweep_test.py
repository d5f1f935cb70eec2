"""Comparisons of methods: `--mode=sweep`."""

import json
import math
import pathlib
import re
import textwrap

import pytest

from haikd import config as config_lib
from haikd.config import file as config_file
from haikd.core import checks
from haikd.core import plugins
from haikd.objective import terms
from haikd.run import job
from haikd.run import method_cost
from haikd.run import sweep
from haikd.storage import files

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
FILES = ('austen_draft', 'austen_records', 'digits_methods',
         'fashion_methods', 'sentences_methods')

METHODS = """
    from haikd import config as config_lib
    import tiny

    METHODS = dict(
        kl=dict(soft=dict(loss='kl_divergence')),
        alone={})

    def get_config(variant=''):
      config = tiny.get_config()
      config.distillation.alpha = 0.0
      if variant:  # The data set of methods comes with a plugin.
        config.plugins = ('my_plugin',)
        config.data.name, config.data.options = 'spoilt', {}
      return config_lib.variant(config, variant, METHODS)
"""


@pytest.mark.parametrize('name', FILES)
def test_all_methods_of_configs_have_terms_that_exist(
    fresh, name, tmp_path, monkeypatch):
  for path in ('smollm2/SmolLM2-135M-Instruct.Q4_1.gguf', 'minilm/config.json'):
    (tmp_path / 'data' / path).parent.mkdir(parents=True)
    (tmp_path / 'data' / path).touch()
  monkeypatch.chdir(tmp_path)
  path = f'{CONFIGS / name}.py'
  methods = config_file.load(path).sweep.methods
  assert len(methods) > 2
  found = set()
  for method in methods:
    config = config_file.load(f'{path}:{method}')
    config_lib.validate(config)
    plugins.load(config.plugins)
    built = terms.build_terms(
        config, has_teacher=True, has_labels=True, has_scores=False,
        task='classification')
    assert (len(built) == 1) == (
        method == 'alone' or name.startswith('austen_'))
    found.add(f'{config.losses} {config.teacher.records}')
  assert len(found) == len(methods)  # None is another's copy.
  with pytest.raises(checks.ConfigError,
                     match=f'variant of a config must be {methods[0]}, .*smoke '
                     "or left out; got 'klx'"):
    config_file.load(f'{path}:klx')


def test_sweep_trains_what_is_missing_and_compares(
    run, tmp_path, monkeypatch):
  (tmp_path / 'methods.py').write_text(textwrap.dedent(METHODS))
  call = lambda *args: run('--mode=sweep', *args, config='methods.py')
  code, out, err = call()
  assert code == 0, err
  assert 'run 2 of 2' in err
  found = json.loads((tmp_path / 'run/sweep.json').read_text())
  assert (found['final'], found['seeds']) == ('test', [1])
  teachers = []
  for method, losses in (('kl', {'soft'}), ('alone', set())):
    row, folder = found['methods'][method], tmp_path / 'run' / method / 'seed-1'
    config = json.loads((folder / 'config.json').read_text())
    assert set(config['losses']) == losses
    result = json.loads((folder / 'result.json').read_text())
    assert row['scores']['accuracy']['values'] == [
        result['student']['accuracy']]
    assert row['step_bytes'] > 0 and row['step_seconds'] > 0
    teachers.append(result['teacher'])
  assert teachers[0] == teachers[1]
  assert re.search(r'(?m)^ +alone +\S+% +[+-]\S+%$', out)  # That of compare.
  # Another start, of more methods or factors, trains nothing twice.
  trained = []

  def train(config, folder, command):
    del config, command
    trained.append(folder.name)
    raise checks.ConfigError('enough.')

  monkeypatch.setattr(job, 'check', lambda *args: None)
  monkeypatch.setattr(job, 'train', train)
  code, _, err = call('--config.sweep.learning_rates=(1.0, 2.0)')
  assert (code, trained) == (2, ['grid-1-1']), err
  code, _, err = call()
  assert (code, trained) == (0, ['grid-1-1']), err


def fake(monkeypatch, scores):
  """Replaces training; `scores(config)` is the metric `score` of a run.

  Returns:
    A list that the configs of all runs are added to.
  """
  configs = []

  def train(config, folder, command=''):
    del command
    configs.append((folder, config))
    score = scores(config)
    if score is None:
      raise checks.DivergedError('loss must stay finite.')
    folder.mkdir(parents=True)
    results = dict(student=dict(
        parameters=1, kl=score, accuracy=score, seconds=1.0))
    files.write_json(folder / 'result.json', results)
    files.write_json(folder / 'config.json', config)
    return results

  monkeypatch.setattr(job, 'train', train)
  monkeypatch.setattr(job, 'check', lambda *args: None)
  monkeypatch.setattr(job, 'train_teacher', lambda *args: None)
  monkeypatch.setattr(method_cost, 'measure',
                      lambda *args: method_cost.Cost(0.25, 2**20))
  return configs


def load(metric='accuracy', **losses):
  """Returns a function that loads methods of the given losses."""
  def get(variant):
    config = config_lib.base()
    config.seed = 5
    config.sweep.metric = metric
    config.teacher.train.steps = 9
    config.sweep.learning_rates = (0.5, 1.0, 2.0)
    config.sweep.weights = (1.0, 10.0)
    return config_lib.variant(config, variant, losses)
  return get


def test_methods_of_several_data_sets_are_refused_before_the_teacher(
    tmp_path, monkeypatch):
  configs = fake(monkeypatch, lambda config: 0.5)
  get = load(**TWO)

  def other(variant):
    config = get(variant)
    config.data.name = 'fashion' if variant == 'none' else 'digits'
    return config

  trained = []
  monkeypatch.setattr(job, 'train_teacher', lambda *args: trained.append(args))
  with pytest.raises(checks.ConfigError, match=(
      'on the same data set .config.data.name.; got one: .digits.; none: ')):
    sweep.train(other, tmp_path, seeds=1)
  assert not trained and not configs


TWO = dict(one=dict(x=dict(loss='logit_mse', weight=3.0)), none={})


@pytest.mark.parametrize('metric,rate,weight', [
    ('accuracy', 2.0, 10.0), ('kl', 1.0, 1.0)])
def test_the_best_on_validation_is_trained_with_other_seeds(
    tmp_path, monkeypatch, metric, rate, weight):
  def scores(config):
    if config.optimizer.learning_rate == 5e-4:
      return None  # Half the rate diverges, which is no reason to stop.
    weight = config.losses.x.weight if config.losses else 0.0
    return 1e3 * config.optimizer.learning_rate + weight

  configs = fake(monkeypatch, scores)
  found = sweep.train(load(metric, **TWO), tmp_path, 2)
  assert found['methods']['one']['best'] == dict(
      learning_rate=rate, weights=weight, score=rate + 3 * weight)
  assert found['methods']['one']['grid'][0]['score'] is None
  tried = [(c.seed, c.evaluation.final) for folder, c in configs
           if folder.name.startswith('grid')]
  assert tried == [(5, 'validation')] * 9  # 6 of one; without weights, 3.
  final = [(folder.parent.name, c.seed, c.evaluation.final, c.teacher.init)
           for folder, c in configs if folder.name.startswith('seed')]
  teacher = str(tmp_path / 'teacher')
  assert final == [('one', 6, 'test', teacher), ('none', 6, 'test', teacher),
                   ('one', 7, 'test', teacher), ('none', 7, 'test', teacher)]
  scores = found['methods']['none']['scores'][metric]
  assert scores['gain']['mean'] == -3 * weight
  assert scores['mean'] == rate


@pytest.mark.parametrize('losses,metric,message', [
    ({}, 'accuracy', r'config.sweep.methods must be variants .* got \(\)'),
    (dict(teacher={}), 'accuracy', 'must be names of other folders'),
    (dict(a={}, b=dict(x=dict(loss='dost'))), 'accuracy',
     "methods: b: config.losses.x.loss must .* got 'dost'. Did you mean 'dist"),
    (dict(a=dict(x=dict(loss='contrastive'))), 'accuracy',
     'methods: a: config.losses.x.options.data_size must be given'),
    (TWO, 'acuracy', "be a metric of the student; got 'acuracy'.*accuracy"),
    (dict(a=dict(x=dict(loss='dist', weight=dict(
        kind='linear', start=0.0, end=1.0, steps=9)))), 'accuracy',
     'config.losses.x.weight must be a number'),
    (TWO, 'kl', 'config.sweep.learning_rates must have a factor')])
def test_what_cannot_be_compared_is_refused(
    tmp_path, monkeypatch, losses, metric, message):
  fake(monkeypatch, lambda config: math.nan)
  taught = []
  monkeypatch.setattr(job, 'train_teacher', lambda *args: taught.append(args))
  with pytest.raises((checks.ConfigError, checks.DivergedError),
                     match=message):
    sweep.train(load(metric, **losses), tmp_path, 1)
  assert not taught or 'methods: ' not in message


def test_a_variant_is_refused_beside_the_mode(run):
  code, _, err = run('--mode=sweep', config='tiny.py:smoke')
  assert code == 2
  assert '--config must have no variant with --mode=sweep' in err
