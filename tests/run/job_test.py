"""The job: what it checks first, what it shares, and what it writes."""

import gc
import json
import shutil

import haiku as hk
import jax
import numpy as np
import pytest

import haikd
from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.data import arrays
from haikd.engine import evaluate
from haikd.engine import mesh as mesh_lib
from haikd.run import job
from haikd.run import trainees
from haikd.run import trainer
from haikd.run import workdir
from haikd.storage import checkpoint
from haikd.storage import checkpointer as checkpointer_lib

OPENED = []


@pytest.fixture(autouse=True)
def temporary():
  OPENED.clear()
  with registry.datasets.temporary(), registry.models.temporary():

    @haikd.register_dataset()
    def counted(split, *, size=50, labels=True, spoilt=''):
      OPENED.append(split)
      image = np.random.RandomState(0).rand(size, 4).astype(np.float32)
      columns = dict(x=image)
      if labels:
        columns['label'] = np.arange(size) % 3
      if split == spoilt:
        image[7, 2] = np.nan
      return arrays.Arrays(columns, num_classes=3)

    @haikd.register_model()
    def normed(inputs, *, is_training, num_classes, norms=1):
      for _ in range(norms):
        inputs = hk.BatchNorm(False, False, 0.9)(inputs, is_training)
      return hk.Linear(num_classes)(inputs)

    yield


def make_config(**fields):
  config = config_lib.base()
  config.steps = 4
  config.batch_size = 16
  config.checkpoint_every = 2
  config.data.name = 'counted'
  config.teacher.options = dict(hidden=(8,))
  config.teacher.train.steps = 2
  config.student.options = dict(hidden=(4,))
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture
def untrained(monkeypatch):
  """Makes every training fail the test."""
  monkeypatch.setattr(trainer, 'train',
                      lambda *unused: pytest.fail('it was trained'))


def read(path):
  return json.loads(path.read_text())


def test_advice_after_a_failed_try_can_be_followed(tmp_path):
  with pytest.raises(checks.DataError, match='Set config.batch_size to 50'):
    job.train(make_config(batch_size=64), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  job.train(make_config(batch_size=48), tmp_path / 'run')


def test_try_that_ended_before_a_checkpoint_does_not_own_the_workdir(
    tmp_path, monkeypatch):

  def diverged(*unused):
    raise checks.DivergedError

  with monkeypatch.context() as patch:
    patch.setattr(trainer, 'train', diverged)
    with pytest.raises(checks.DivergedError):
      job.train(make_config(), tmp_path)
  config = make_config(**{'teacher.train.optimizer.learning_rate': 0.5})
  job.train(config, tmp_path)
  written = read(tmp_path / 'config.json')
  assert written['teacher']['train']['optimizer']['learning_rate'] == 0.5


@pytest.mark.parametrize('fields, match', [
    ({'evaluation.final': 'bad'}, "example 7 of split 'bad' .* a finite x"),
    ({'evaluation.split': 'bad'}, "example 7 of split 'bad' .* a finite x"),
    ({'evaluation.final': 'bad[:0]'}, 'must name a split that has examples'),
    ({'evaluation.final': 'bad[x]'}, 'must be the name of a split or a slice'),
    ({'teacher.init': '/no/such/run'}, 'must hold a checkpoint'),
    ({'student.init': '/no/such/run'}, 'must hold a checkpoint'),
])
def test_everything_is_checked_before_anything_is_trained(
    tmp_path, untrained, fields, match):
  config = make_config(**fields)
  config.data.options.spoilt = 'bad'
  with pytest.raises(checks.DataError, match=match):
    job.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('norms, match', [
    (0, 'a surplus net_state/batch_norm'),
    (2, 'no net_state/batch_norm'),
])
def test_init_must_have_the_state_of_the_student(tmp_path, monkeypatch, norms,
                                                 match):
  fields = {'student.model': 'normed', 'student.options': {}}
  job.train(make_config(**fields), tmp_path / 'first')
  monkeypatch.setattr(trainer, 'train',
                      lambda *unused: pytest.fail('it was trained'))
  config = make_config(**fields, **{
      'student.init': str(tmp_path / 'first')})
  config.student.options.norms = norms
  with pytest.raises(checks.DataError,
                     match=f'config.student.init must hold .*{match}'):
    job.train(config, tmp_path / 'second')


def test_missing_state_of_a_teacher_is_named(tmp_path, untrained):
  fields = {'teacher.model': 'normed', 'teacher.options': {},
            'teacher.init': str(tmp_path / 'saved')}
  student = trainees.build(
      make_config(**fields), mesh_lib.build_mesh(config_lib.base().mesh))
  params, _ = student.program.objective.teacher.init(
      jax.random.key(0),
      jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), student.data.spec))
  state = base.TrainState(
      step=np.int32(1), params=base.Params(params, {}), net_state={},
      opt_state=(), loss_scale=(), ema=None)
  with checkpointer_lib.Checkpointer(
      tmp_path / 'saved', keep=1) as checkpointer:
    checkpointer.save(1, state, {}, dict(teacher='', seconds=1.0))
  with pytest.raises(checks.DataError,
                     match='config.teacher.init must .*got no net_state/ba'):
    job.train(make_config(**fields), tmp_path / 'run')


def test_init_is_not_needed_once_a_checkpoint_is_saved(tmp_path):
  job.train(make_config(), tmp_path / 'first')
  config = make_config(**{'student.init': str(tmp_path / 'first')})
  before = job.train(config, tmp_path / 'second')
  shutil.rmtree(tmp_path / 'first')
  after = job.train(config, tmp_path / 'second')
  assert after['student']['kl'] == before['student']['kl']
  assert 'student_start' in before and 'student_start' not in after


def test_data_is_opened_once_for_all_networks(tmp_path):
  job.train(make_config(baseline=True), tmp_path)
  assert sorted(OPENED) == ['test', 'train', 'validation']


def test_later_evaluation_leaves_the_result_and_names_its_split(tmp_path):
  config = make_config(baseline=True)
  job.train(config, tmp_path)
  result = (tmp_path / 'result.json').read_bytes()
  config.evaluation.final = 'train[:9]'
  job.evaluate(config, tmp_path)
  assert (tmp_path / 'result.json').read_bytes() == result
  later = read(tmp_path / 'eval-train__9_.json')
  assert list(later) == list(json.loads(result))
  for name, row in json.loads(result).items():
    assert list(row) == list(later[name])


def test_evaluation_refuses_another_teacher(tmp_path):
  job.train(make_config(), tmp_path / 'run')
  job.train(make_config(seed=1), tmp_path / 'other')
  shutil.rmtree(tmp_path / 'run/teacher')
  shutil.copytree(tmp_path / 'other/teacher', tmp_path / 'run/teacher')
  with pytest.raises(checks.DataError,
                     match='^teacher must be the one that training began'):
    job.evaluate(make_config(), tmp_path / 'run')


def test_evaluation_refuses_a_teacher_of_another_architecture(tmp_path):
  config = make_config()
  job.train(config, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run/teacher')
  shutil.copytree(tmp_path / 'run/checkpoints',
                  tmp_path / 'run/teacher/checkpoints')
  with pytest.raises(checks.DataError,
                     match='^--workdir/teacher must hold the parameters of'):
    job.evaluate(config, tmp_path / 'run')


def test_only_the_teacher_has_a_separate_evaluation(tmp_path, monkeypatch):
  built = []
  original = evaluate.build_eval_step

  def record(network, teacher, *args, **options):
    built.append((network.title, teacher and teacher.title))
    return original(network, teacher, *args, **options)

  monkeypatch.setattr(evaluate, 'build_eval_step', record)
  results = job.train(make_config(baseline=True), tmp_path)
  # One for each of the three programs, and the teacher compared with itself.
  assert sorted(built, key=str) == [
      ('student', 'teacher'), ('student', None), ('student', None),
      ('teacher', 'teacher')]
  assert (results['teacher']['kl'], results['teacher']['agreement']) == (0, 1)


def test_checkpoints_hold_the_config_they_were_trained_with(tmp_path):
  config = make_config(baseline=True)
  job.train(config, tmp_path)
  for part in ('', 'baseline', 'teacher'):
    written = read(tmp_path / part / 'config.json')
    assert checkpoint.metadata(tmp_path / part)['config'] == written
  assert written['student']['options'] == dict(hidden=[8])
  assert written['steps'] == 2


def test_two_jobs_in_one_workdir_are_refused(tmp_path, untrained):
  with workdir.lock(tmp_path):
    with pytest.raises(checks.DataError, match='one run at a time'):
      job.train(make_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']


def test_start_of_a_finished_job_adds_no_file(tmp_path):
  job.train(make_config(baseline=True), tmp_path)
  before = sorted(tmp_path.rglob('*'))
  job.train(make_config(baseline=True), tmp_path)
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('fields, match', [
    ({}, '^data must have labels to train a teacher on; they are missing. Poi'),
    ({'baseline': True},
     '^config.baseline must be False if the data has no labels .* Set'),
])
def test_missing_labels_are_refused_if_they_are_needed(tmp_path, fields, match):
  config = make_config(**fields)
  config.data.options.labels = False
  with pytest.raises(checks.ConfigError, match=match):
    job.train(config, tmp_path)


def test_distillation_needs_no_labels(tmp_path):
  job.train(make_config(), tmp_path / 'first')
  config = make_config(**{'teacher.init': str(tmp_path / 'first/teacher')})
  config.data.options.labels = False
  results = job.train(config, tmp_path / 'second')
  assert 'accuracy' not in results['student'] and results['student']['kl'] > 0


def test_teacher_is_kept_only_in_its_compute_dtype(tmp_path, monkeypatch):
  original, dtypes = trainer.train, set()

  def train(config, *args):
    if 'student' in args:
      gc.collect()
      dtypes.update(
          str(x.dtype) for x in jax.live_arrays() if x.shape == (4, 23))
    return original(config, *args)

  monkeypatch.setattr(trainer, 'train', train)
  job.train(make_config(**{'teacher.precision': 'bfloat16',
                           'teacher.options': dict(hidden=(23,))}), tmp_path)
  assert dtypes == {'bfloat16'}
