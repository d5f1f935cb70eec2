"""What training never keeps."""

import jax.numpy as jnp
import pytest

import haikd
from haikd import checks
from haikd import config as config_lib
from haikd import job
from haikd import registry


@pytest.fixture
def config():
  config = config_lib.base()
  config.steps = 60
  config.batch_size = 16
  config.checkpoint_every = 1
  config.data.name = 'synthetic'
  config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
  config.teacher.options = dict(hidden=(8,))
  config.teacher.train.steps = 2
  config.student.options = dict(hidden=(4,))
  with registry.losses.temporary():

    @haikd.register_loss(on='logits')
    def steep(student, teacher, *, mask):
      """Is 0, and its gradient is NaN: the root has no derivative at 0."""
      return haikd.masked_mean(jnp.sqrt(jnp.abs(student - student)), mask)

    yield config


def checkpoints(workdir):
  return list((workdir / 'checkpoints').glob('[0-9]*'))


@pytest.mark.parametrize('steps', (1, 60))
def test_gradient_that_is_not_finite_ends_the_run(config, tmp_path, steps):
  config.steps = steps
  config.losses.x = dict(loss='steep')
  with pytest.raises(checks.DivergedError, match='got grad_norm=nan at step 1'):
    job.train(config, tmp_path)
  assert not checkpoints(tmp_path)


def test_update_that_is_not_finite_is_not_kept(config, tmp_path):
  # The gradient is finite; times the learning rate it is beyond 3.4e38.
  config.losses.x = dict(loss='kl_divergence', weight=1e4)
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 3e38
  config.optimizer.schedule = 'constant'
  match = 'got parameters that are not finite at step 1'
  with pytest.raises(checks.DivergedError, match=match):
    job.train(config, tmp_path)
  assert not checkpoints(tmp_path)


def test_loss_scale_that_cannot_fall_further_ends_the_run(config, tmp_path):
  config.student.precision = 'float16'
  config.losses.x = dict(loss='steep')
  config.checkpoint_every = 100
  config.log_every = 1
  # 2^15 is halved 15 times; the sixteenth step finds nothing left to halve.
  with pytest.raises(checks.DivergedError, match='grad_norm=nan at step 1[56]'):
    job.train(config, tmp_path)
