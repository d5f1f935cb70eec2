"""What checks and exports need of images."""

import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import registry
from haikd.data import arrays
from haikd.data import workers
from haikd.engine import mesh as mesh_lib
from haikd.run import export
from haikd.run import trainees


@pytest.fixture(name='config')
def _config(fresh):
  """Of images of 4 by 4, that are 5 by 5 in the split 'large'."""

  @registry.register_dataset()
  def sized(split):
    size = 5 if split == 'large' else 4
    return arrays.Arrays(dict(
        image=np.zeros((8, size, size, 1), np.uint8),
        label=np.arange(8) % 2), num_classes=2)

  config = config_lib.base()
  config.batch_size, config.teacher.train.steps = 4, 2
  config.data.name, config.data.workers = 'sized', 2
  config.student.options = config.teacher.options = dict(hidden=(3,))
  return config


def test_images_of_another_size_are_refused_with_their_shapes(config):
  config.evaluation.final = 'large'
  student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  with pytest.raises(checks.ConfigError, match=(
      r"config.evaluation.final must name a split .*; got 'large' with inputs "
      r'and labels of shapes \(\(8, 5, 5, 1\), \(8,\)\): ')):
    student.check_evaluation()


def test_an_export_is_tried_without_workers(config, monkeypatch):
  config.data.image_size = 4  # Resized at each visit.
  student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  monkeypatch.setattr(workers, 'shared', None)
  inputs = export._view(student).inputs
  assert inputs.shape[1:] == (4, 4, 1) and inputs.dtype == np.float32
