"""Stages of a run: what changes in them, kills in each, what is refused."""

import itertools
import json
import logging

import jax
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.engine import mesh as mesh_lib
from haikd.engine import stages as stages_lib
from haikd.run import adaptive
from haikd.run import job
from haikd.run import rates
from haikd.run import resolve
from haikd.run import teachers
from haikd.run import trainees
from haikd.run import training
from haikd.storage import checkpoint
from haikd.storage import fingerprint

pytestmark = pytest.mark.mesh


def make_config(steps=12, **stages):
  config = config_lib.base()
  config.steps, config.batch_size = steps, 8
  config.log_every, config.checkpoint_every = 1, 2
  config.evaluation.every, config.evaluation.batch_size = 4, 50
  config.data.name = 'synthetic'
  config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
  config.teacher.options = dict(hidden=(8, 8))
  config.teacher.train.steps = 2
  config.student.options = dict(hidden=(4, 4), dropout=0.1)
  config.optimizer.learning_rate = 0.01
  config.optimizer.weight_decay = 0.1
  config.optimizer.ema_decay = 0.9
  config.losses.hint = dict(loss='feature_matching', layers=((0, 0),),
                            align='project')
  config.stages = stages or dict(
      hints=dict(
          start=0, distillation=dict(alpha=None),
          optimizer=dict(frozen=('hidden_1', 'logits'), warmup_steps=2)),
      both=dict(start=1 / 3, losses=dict(hint=dict(weight=dict(
          kind='linear', start=1.0, end=0.0, steps=4)))),
      labels=dict(start=8, losses=dict(hint=None),
                  distillation=dict(alpha=0.0),
                  optimizer=dict(name='sgd', frozen=('hidden_0',))))
  config_lib.validate(config)
  return config


class _Cut(Exception):
  """Ends a run between two checkpoints, like a kill."""


def kill_at(monkeypatch, number):
  """Makes training end after so many steps, those of the teacher included."""
  steps = itertools.count(1)

  def requested():
    if next(steps) == number:
      raise _Cut
    return False

  monkeypatch.setattr(training.distributed, 'stop_requested', requested)


def rows(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return rates.without(map(json.loads, lines))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  job.train(make_config(), workdir)
  return workdir


def test_run_that_is_killed_in_each_stage_ends_bitwise_as_undisturbed(
    whole, tmp_path, monkeypatch):
  # It goes on from 2, in the first stage; from 4 and 8, where others begin; and
  # from 10, in the last one.
  for number, saved in ((2 + 3, 2), (3, 4), (5, 8), (3, 10)):
    with monkeypatch.context() as patch:
      kill_at(patch, number)
      with pytest.raises(_Cut):
        job.train(make_config(), tmp_path)
    assert checkpoint.steps_taken(tmp_path) == saved
  job.train(make_config(), tmp_path)
  assert fingerprint.tree_hash(checkpoint.load_network(tmp_path)) == (
      fingerprint.tree_hash(checkpoint.load_network(whole)))
  assert rows(tmp_path) == rows(whole)


def test_metrics_show_what_each_stage_does(whole):
  train = [row for row in rows(whole) if row['split'] == 'train']
  assert [row['stage'] for row in train] == [1] * 4 + [2] * 4 + [3] * 4
  terms = [{name.split('/')[1] for name in row if name.startswith('loss/')}
           for row in train[::4]]
  assert terms == [{'hint'}, {'hint', 'kl_divergence', 'cross_entropy'},
                   {'cross_entropy'}]
  hints = [row.get('weight/hint') for row in train]
  # The schedule begins with the stage.
  np.testing.assert_allclose(hints[:8], [1] * 4 + [1, 0.75, 0.5, 0.25])
  assert hints[8:] == [None] * 4
  # Cosines over the four steps of each stage, the first after a warm-up of 2.
  rates = [row['learning_rate'] for row in train]
  cosine = lambda parts: [0.005 * (1 + np.cos(np.pi * i / parts))
                          for i in range(parts)]
  np.testing.assert_allclose(
      rates, [0.01 / 3, 0.02 / 3, *cosine(2), *cosine(4), *cosine(4)],
      rtol=1e-5)


def build(config):
  config = resolve.from_pretrained(config)
  return trainees.build_all(config, mesh_lib.build_mesh(config.mesh))[0]


def test_stages_that_share_an_optimizer_share_its_schedule_and_state():
  lower = dict(learning_rate=0.005)
  student = build(make_config(
      20, a=dict(start=4, losses=dict(hint=None)),
      b=dict(start=8, optimizer=lower), c=dict(start=12, optimizer=lower,
                                               distillation=dict(alpha=0.5)),
      d=dict(start=16)))
  stages = student.program.stages
  assert [stage.start for stage in stages] == [0, 4, 8, 12, 16]
  assert [stage.begin is not None for stage in stages] == [
      False, False, True, False, True]
  assert [student.program.stage_of(step) for step in (0, 1, 4, 5, 20)] == [
      0, 0, 0, 1, 4]


@pytest.mark.slow
def test_term_that_is_off_keeps_what_it_has_learned(
    tmp_path, caplog, monkeypatch):
  """Neither weight decay nor momentum moves it. Each stage is said once."""
  config = make_config(6, rest=dict(start=2, losses=dict(hint=None)),
                       again=dict(start=4))
  enter, align = stages_lib.Stage.enter, []

  def spy(stage, state, title):
    if title == 'student':
      align.append(state.params.align['hint']['0'])
    return enter(stage, state, title)

  monkeypatch.setattr(stages_lib.Stage, 'enter', spy)
  with caplog.at_level(logging.INFO, 'haikd'):
    job.train(config, tmp_path)
  first, second, third = (jax.tree.leaves(params)[-1] for params in align)
  assert first.ndim == 2 and not np.array_equal(first, second)
  np.testing.assert_array_equal(second, third)
  assert [text for text in caplog.messages if 'stage' in text] == [
      'student: stage rest begins after step 2, with kl_divergence, '
      'cross_entropy.',
      'student: stage again begins after step 4, with kl_divergence, '
      'cross_entropy, hint.']


@pytest.mark.slow
def test_patience_waits_for_the_last_stage(tmp_path):
  config = make_config(12, a=dict(start=8))
  config.evaluation.update(dict(
      every=2, keep_best='accuracy', patience=1))
  config.optimizer.learning_rate = 0.0  # It never gets better.
  config.optimizer.ema_decay = 0.0
  job.train(config, tmp_path)
  evaluated = [row['step'] for row in rows(tmp_path) if row['split'] != 'train']
  assert evaluated == [2, 4, 6, 8, 10]


@pytest.mark.parametrize('stages, text', [
    (dict(a=dict(losses=dict())), r'stages\.a must be a dict with a start'),
    (dict(a=3), r'stages\.a must be a dict with a start; got 3'),
    (dict(a=dict(start='x')), r'a\.start must be a share .* whole number'),
    (dict(a=dict(start=2.5)), r'a\.start must be a share .* got 2\.5'),
    (dict(a=dict(start=-1)), r'a\.start must be a share'),
    (dict(a=dict(start=12)), r'a\.start must come before the end of the run; '
     r'got step 12, config\.steps=12'),
    (dict(a=dict(start=3), b=dict(start=0.25)),
     r'b\.start must differ from that of other stages; got step 3, where a'),
    (dict(a=dict(start=0, batch_size=4)),
     r'a\.batch_size must be a group of fields that may change in a stage\. '
     'Known: data, distillation, losses, optimizer, start, teacher'),
    (dict(a=dict(start=0, student=dict(model='vit'))), r'a\.student must be a'),
    (dict(a=dict(start=0, teacher=dict(model='vit'))),
     r'a\.teacher\.init must name weights; got None\. Only config\.teacher is'),
    (dict(a=dict(start=0, teacher=dict(init='x', train=dict(steps=3)))),
     r'a\.teacher\.train must be a field of a network'),
    (dict(a=dict(start=0, teacher=dict(init='x'))),
     r'stages must leave config\.teacher to one of them'),
    (dict(a=dict(start=3, teacher=dict(init='x', precision='float8'))),
     r'stages\.a: config\.teacher\.precision must be '),
    (dict(a=dict(start=0, optimizer=3)), r'a\.optimizer must be a dict of'),
    (dict(a=dict(start=0, optimizer=dict(learning_rat=3.0))),
     r"stages\.a: config\.optimizer\.learning_rat must .* 'learning_rate'"),
    (dict(a=dict(start=0, distillation=dict(alpha=2.0))),
     r'stages\.a: config\.distillation\.alpha must lie between 0 and 1'),
    (dict(a=dict(start=0, losses=dict(hin=None))),
     r"losses\.hin must be None only for a term of .* Did you mean 'hint'"),
    (dict(a=dict(start=0, losses=dict(new=dict(weight=2.0)))),
     r'stages\.a: config\.losses\.new\.loss must name a registered loss'),
    (dict(a=dict(start=0, optimizer=dict(ema_decay=0.0))),
     r'a\.optimizer\.ema_decay must be 0 in all stages or in none; got 0\.0'),
    (dict(a=dict(start=0, data=dict(name='x'))),
     r"a\.data must change the weights .* alone; got 'name'"),
    (dict(a=dict(start=0, data=dict(mixture=dict(x=1.0)))),
     r'a\.data\.mixture\.x must be a data set of config\.data\.mixture'),
    (dict(a=dict(start=0, data=dict(mixture=dict(x=dict(name='digits'))))),
     r'a\.data\.mixture\.x must join config\.data\.mixture, in one stage alon'),
])
def test_stage_that_cannot_be_is_refused(stages, text):
  with pytest.raises(checks.ConfigError, match=text):
    make_config(**stages)


def test_stage_may_have_another_teacher(whole, tmp_path, monkeypatch, caplog):
  """Up to its end the run is that of the other teacher alone, bit for bit."""
  weights = dict(init=str(whole), options=dict(hidden=(4, 4), dropout=0.1))
  config = make_config(6, early=dict(start=0, teacher=weights),
                       late=dict(start=4, losses=dict(hint=None)))
  config.teacher.init = str(whole / 'teacher')
  alone = make_config(6, late=dict(start=4, losses=dict(hint=None)))
  alone.teacher.update(weights)
  with caplog.at_level(logging.INFO, 'haikd'):
    job.train(config, tmp_path / 'run')
  assert caplog.messages.count(
      'student: stage early begins after step 0, with kl_divergence, '
      f'cross_entropy, hint, taught by {whole}.') == 1
  with monkeypatch.context() as patch:
    kill_at(patch, 4)
    with pytest.raises(_Cut):
      job.train(config, tmp_path / 'killed')
  job.train(config, tmp_path / 'killed')
  job.train(alone, tmp_path / 'alone')
  got, killed, expected = (
      [row for row in rows(tmp_path / name) if row['split'] == 'train']
      for name in ('run', 'killed', 'alone'))
  loss = lambda row: row['loss/kl_divergence']
  assert killed == got
  assert list(map(loss, got[:4])) == list(map(loss, expected[:4]))
  assert loss(got[4]) != loss(expected[4])
  # Evaluations compare with the teacher of the config.
  teacher, of_whole = (
      json.loads((x / 'result.json').read_text())['teacher']
      for x in (tmp_path / 'run', whole))
  assert {**teacher, 'seconds': 0} == {**of_whole, 'seconds': 0}
  config.stages.early.teacher.init = str(tmp_path / 'alone')
  with pytest.raises(checks.DataError, match='teacher'):
    job.train(config, tmp_path / 'killed')


def test_adaptive_layers_of_a_stage_resemble_its_own_teacher(whole, tmp_path):
  weights = dict(init=str(whole), options=dict(hidden=(4, 4), dropout=0.1))
  term = dict(loss='feature_matching', layers='adaptive', align='project')

  def found(name, learned_from, **early):
    config = make_config(6, late=dict(start=4), early=dict(
        start=0, losses=dict(hint=None, other=term), **early))
    with config.losses.ignore_type():
      config.losses.hint.layers = 'adaptive'
    config.teacher.update(learned_from)
    student = build(config)
    adaptive.settle(student, teachers.freeze(
        student.config, student.program, student.data,
        student.start('teacher').network), tmp_path / name)
    return adaptive.read(tmp_path / name)

  (tmp_path / 'both').mkdir()
  (tmp_path / 'one').mkdir()
  both = found('both', dict(init=str(whole / 'teacher')), teacher=weights)
  one = found('one', weights)
  assert both['other'] == one['other']
  assert both['hint'] != one['hint']


def test_teacher_of_a_stage_that_sees_other_images_is_refused(whole):
  config = make_config(a=dict(start=6, teacher=dict(init=str(whole / 'teacher'),
                                                    options=dict(hidden=(8, 8))
                                                    )))
  config.data.mean = 0.5
  with pytest.raises(checks.ConfigError, match=(
      r'^config\.stages\.a\.teacher must take what config\.teacher takes, .*'
      r'changes config\.teacher\.view\.')):
    build(config)


@pytest.mark.parametrize('stages, text', [
    (dict(a=dict(start=6, optimizer=dict(frozen=('hiden_0',)))),
     r'stages\.a: config\.optimizer\.frozen must match .*hiden_0'),
    (dict(a=dict(start=6, optimizer=dict(options=dict(b3=0.1)))),
     r'stages\.a: config\.optimizer\.options\.b3 must be an option of adamw'),
    (dict(a=dict(start=6, losses=dict(hint=dict(layers=((0, 5),))))),
     r'stages\.a: config\.losses\.hint: .*layers must exist in the teacher'),
    (dict(a=dict(start=6, losses=dict(hint=dict(layers=((0, 0), (1, 1)))))),
     'config.stages must leave the shapes of what the term hint learns'),
    (dict(a=dict(start=6, losses=dict(hint=None),
                 distillation=dict(alpha=None))),
     r'stages\.a: config\.distillation and config\.losses must give at least'),
])
def test_stage_that_does_not_fit_the_networks_is_refused(stages, text):
  with pytest.raises(checks.ConfigError, match=text):
    build(make_config(**stages))


def test_step_of_a_later_stage_is_traced_before_training(
    tmp_path, monkeypatch):

  def fail(*unused):
    raise ValueError('no such product')

  def build_all(*args):
    student, *others = original(*args)
    first, second = student.program.stages
    return student._replace(program=student.program._replace(
        stages=(first, second._replace(train_step=fail)))), *others

  original = trainees.build_all
  monkeypatch.setattr(trainees, 'build_all', build_all)
  with pytest.raises(checks.ConfigError, match=(
      r'^config\.stages\.a must have a step that runs; got ValueError: no su')):
    job.train(make_config(a=dict(start=6)), tmp_path)
  assert not list(tmp_path.iterdir())
