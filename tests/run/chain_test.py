"""A teaching assistant learns from the teacher, and teaches the student."""

import json
import shutil

import jax
import numpy as np
import pytest

import haikd
from haikd.core import checks
from haikd.run import chain
from haikd.run import resolve
from haikd.storage import checkpointer


def make_config():
  config = haikd.config.base()
  config.steps, config.batch_size, config.checkpoint_every = 4, 16, 2
  config.data.name = 'synthetic'
  config.data.options = dict(size=64, shape=(4, 4, 1), num_classes=3)
  config.teacher.options = dict(hidden=(16,))
  config.teacher.train.steps = 4
  config.student.options = dict(hidden=(4,))
  config.assistants.b = haikd.config.assistant(
      options=dict(hidden=(8,)), steps=4, optimizer=dict(learning_rate=0.01))
  haikd.config.validate(config)
  return config


def test_links_are_taught_in_the_order_of_their_names(tmp_path):
  config = make_config()
  config.assistants.a = haikd.config.assistant(
      model='convnet', options=dict(channels=(8,)), steps=3)
  first, second, last = chain.links(config, tmp_path)
  assert [x.name for x in (first, second, last)] == ['a', 'b', None]
  assert first.config.teacher == config.teacher and first.config.steps == 3
  assert second.config.teacher.model == first.config.student.model == 'convnet'
  assert second.config.teacher.init == str(tmp_path / 'a')
  assert second.config.optimizer.learning_rate == 0.01
  assert last.config.student == config.student
  assert last.config.teacher.options.hidden == (8,)
  assert (last.workdir, last.config.steps) == (tmp_path, 4)
  assert chain.links(last.config, tmp_path)[0].config is last.config


@pytest.mark.slow
def test_a_chain_that_was_killed_in_each_link_ends_the_same(
    tmp_path, monkeypatch):
  whole = haikd.train(make_config(), tmp_path / 'whole')
  save, saved = checkpointer.Checkpointer.save, []

  def killed(self, *args, **options):
    save(self, *args, **options)
    saved.append(len(saved))
    if len(saved) in (1, 3, 5):  # Each network is saved twice.
      raise KeyboardInterrupt

  monkeypatch.setattr(checkpointer.Checkpointer, 'save', killed)
  for _ in range(3):
    with pytest.raises(KeyboardInterrupt):
      haikd.train(make_config(), tmp_path / 'killed')
  results = haikd.train(make_config(), tmp_path / 'killed')
  assert len(saved) == 6
  for name, which in (('', 'student'), ('b', 'student'), ('b', 'teacher')):
    one, other = (haikd.load(tmp_path / x / name, which).params
                  for x in ('whole', 'killed'))
    jax.tree.map(np.testing.assert_array_equal, one, other)
  assert results['student']['accuracy'] == whole['student']['accuracy']
  again = haikd.evaluate(make_config(), tmp_path / 'killed')
  assert again['teacher']['accuracy'] == results['teacher']['accuracy']
  assistant = json.loads((tmp_path / 'killed/b/result.json').read_text())
  assert results['teacher']['parameters'] == assistant['student']['parameters']
  shutil.copytree(tmp_path / 'killed', tmp_path / 'moved')
  assert haikd.evaluate(make_config(), tmp_path / 'moved') == again
  config = make_config()
  config.assistants.b.steps = 6
  with pytest.raises(checks.ConfigError, match='b.steps must stay as it was'):
    haikd.train(config, tmp_path / 'moved')
  config.assistants = haikd.config.base().assistants
  config.assistants.c = haikd.config.assistant(options=dict(hidden=(8,)))
  with pytest.raises(checks.DataError, match='must belong to this config'):
    haikd.train(config, tmp_path / 'moved')
  assert not (tmp_path / 'moved/c/checkpoints').exists()


def test_what_weights_say_of_the_data_holds_for_all_links(
    tmp_path, monkeypatch):
  def resolved(config):
    config = config.copy_and_resolve_references()
    config.data.mean, config.teacher.view.std = 0.5, 2.0
    return config

  monkeypatch.setattr(resolve, 'from_pretrained', resolved)
  config = make_config()
  config.baseline = True
  config.stages.late = dict(start=2, distillation=dict(alpha=0.5))
  first, last = chain.links(config, tmp_path)
  assert first.config.data.mean == last.config.data.mean == 0.5
  assert first.config.teacher.view.std == 2.0
  assert last.config.teacher.view.std is None  # The assistant sees as it does.
  # What is compared, and what is staged, is the student.
  assert (first.config.baseline, last.config.baseline) == (False, True)
  assert not first.config.stages and last.config.stages == config.stages


@pytest.mark.parametrize('change, match', (
    (dict(teacher=dict(model='mlp')), "can be folders .* got 'teacher'"),
    ({'export-npz': haikd.config.assistant()}, "got 'export-npz'"),
    (dict(b=dict(hidden=3)), 'b must have all fields of an assistant; got'),
    (dict(b=haikd.config.assistant(hidden=3)), 'b.hidden must be a field'),
    (dict(b=haikd.config.assistant(steps=-1)),
     r'^config\.assistants\.b: config\.steps must'),
    (dict(b=haikd.config.assistant(precision='float8')),
     r'^config\.assistants\.b: config\.student\.precision must'),
    (dict(b=haikd.config.assistant(options=dict(hidden=(0,)))),
     r'^config\.assistants\.b: config\.student\.options\.hidden must hold')))
def test_assistants_that_cannot_be_are_refused(tmp_path, change, match):
  config = make_config()
  with config.assistants.unlocked():
    for name, entry in change.items():
      if name == 'teacher':
        entry = haikd.config.assistant(**entry)
      config.assistants[name] = entry
  with pytest.raises(checks.ConfigError, match=match):
    haikd.train(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_every_mode_knows_the_chain(run, tmp_path):
  entry = ("config.assistants.b = config_lib.assistant("
           "options=dict(hidden=(8,)), steps=2)")
  (tmp_path / 'chain.py').write_text(
      (tmp_path / 'tiny.py').read_text().replace(
          '  return', f'  {entry}\n  return'))
  for mode in ('train', 'eval', 'export', 'plan'):
    more = ['--format=npz'] if mode == 'export' else []
    code, out, err = run(f'--mode={mode}', *more, config='chain.py')
    assert code == 0, err
    if mode == 'eval':  # The assistant has 16 x 8 + 8 and 8 x 3 + 3.
      row, = [x.split() for x in out.splitlines() if x.startswith('teacher')]
      assert row[1] == '163'
  assert (tmp_path / 'run/export-npz').is_dir()
  with pytest.raises(checks.DataError,
                     match=f"Load the student of '{tmp_path}/run/b' instead"):
    haikd.load(tmp_path / 'run', 'teacher')
