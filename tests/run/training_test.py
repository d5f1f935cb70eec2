"""What a training says where it is wrong or hangs, and that it goes on."""

import json

import jax.numpy as jnp
import pytest

import haikd
from haikd import config as config_lib
from haikd.core import checks
from haikd.core import registry
from haikd.processes import watchdog
from haikd.run import job
from haikd.run import rates
from haikd.storage import checkpoint
from haikd.storage import fingerprint


@pytest.fixture
def is_wrong():
  """A list of whether the loss `a_bad` is wrong; it can be changed."""
  found = [True]
  with registry.losses.temporary():

    @haikd.register_loss(
        on='logits', example=dict(student=(2, 3), mask=(2,)))
    def a_bad(student, teacher, *, mask):
      del teacher
      return haikd.masked_mean(
          student**2 * (jnp.nan if found[0] else 1.0), mask)

    yield found


def make_config(**stage):
  """A run whose second stage, from step 4 on, has the loss and `stage`."""
  config = config_lib.base()
  config.steps, config.batch_size = 8, 8
  config.log_every, config.checkpoint_every = 1, 3
  config.evaluation.every = 100
  config.data.name = 'synthetic'
  config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
  config.teacher.options = dict(hidden=(8,))
  config.teacher.train.steps = 2
  config.student.options = dict(hidden=(4,))
  config.report.write = False
  config.stages.late = dict(
      start=3 + 1, losses=dict(a_bad=dict(loss='a_bad', weight=0.1)), **stage)
  return config


def rows(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return rates.without(map(json.loads, lines))


@pytest.mark.parametrize('optimizer', ({}, dict(name='sgd')))
def test_a_wrong_first_step_of_a_stage_is_named_and_gone_on_from(
    is_wrong, tmp_path, optimizer):
  stage = dict(optimizer=optimizer) if optimizer else {}
  # 'a_bad' comes before the standard terms in the alphabet, and after them in
  # the objective.
  with pytest.raises(
      checks.DivergedError, match='got loss/a_bad: not finite, at step 5 of '
      'student. .* A new start goes on from step 4.$'):
    job.train(make_config(**stage), tmp_path / 'run')
  assert checkpoint.steps_taken(tmp_path / 'run') == 4
  is_wrong[0] = False
  for name in ('run', 'whole'):
    job.train(make_config(**stage), tmp_path / name)
  run, whole = (fingerprint.tree_hash(checkpoint.load_network(tmp_path / name))
                for name in ('run', 'whole'))
  assert run == whole
  assert rows(tmp_path / 'run') == rows(tmp_path / 'whole')


def test_each_evaluation_has_a_name_for_the_watchdog(tmp_path, monkeypatch):
  phases = []
  monkeypatch.setattr(
      watchdog, 'alive', lambda: phases.append(watchdog._phase))
  config = make_config()
  config.stages = {}
  job.train(config, tmp_path)
  assert {where for phase, where in phases if phase == 'evaluation'} == {
      'step 2 of teacher', 'step 8 of student', 'split test'}
