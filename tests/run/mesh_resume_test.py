"""A run that began on one mesh goes on on another."""

import jax
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.run import job
from haikd.storage import checkpoint
from haikd.storage import checkpointer as checkpointer_lib

pytestmark = pytest.mark.mesh

VIT = dict(patch_size=2, width=16, depth=1, heads=2, mlp_ratio=2.0)


def make_config(**mesh):
  config = config_lib.base()
  config.steps = 4
  config.optimizer.schedule = 'constant'
  config.batch_size = 16
  config.checkpoint_every = 2
  config.evaluation.every = 100
  config.data.name = 'synthetic'
  config.data.options = dict(size=48, shape=(4, 4, 1), num_classes=4)
  for network in config.student, config.teacher:
    network.model, network.options = 'vit', VIT
  config.teacher.train.steps = 2
  # Not Adam: the gradient of the keys' bias is zero, and Adam would turn its
  # rounding errors into steps.
  for optimizer in config.optimizer, config.teacher.train.optimizer:
    optimizer.name = 'sgd'
    optimizer.options = dict(momentum=0.9)
    optimizer.learning_rate = 0.1
  config.optimizer.ema_decay = 0.9
  config.mesh = dict(replica=1, fsdp=1, tensor=1) | mesh
  return config


class _Cut(Exception):
  """Ends a run after a checkpoint, like a kill."""


def cut_after(monkeypatch, step):
  original = checkpointer_lib.Checkpointer.save

  def save(self, at, *args):
    original(self, at, *args)
    if at == step and self._folder.parent.name == 'run':
      self.wait()
      raise _Cut

  monkeypatch.setattr(checkpointer_lib.Checkpointer, 'save', save)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed')
  results = job.train(make_config(fsdp=8), folder)
  return checkpoint.load_network(folder), results


@pytest.mark.parametrize('first, second', (
    (dict(fsdp=8), dict(replica=2, fsdp=2, tensor=2)),
    pytest.param(dict(replica=4, tensor=2), dict(fsdp=8),
                 marks=pytest.mark.slow),
))
def test_run_goes_on_on_another_mesh(first, second, undisturbed, tmp_path,
                                     monkeypatch):
  workdir = tmp_path / 'run'
  with monkeypatch.context() as patch:
    cut_after(patch, 2)
    with pytest.raises(_Cut):
      job.train(make_config(**first), workdir)
  results = job.train(make_config(**second), workdir)
  network, expected = undisturbed
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
      checkpoint.load_network(workdir), network)
  for name in ('teacher', 'student'):
    np.testing.assert_allclose(
        results[name]['cross_entropy'], expected[name]['cross_entropy'],
        rtol=1e-5)
