"""Segmentation: a small fully convolutional network learns from a wide one.

  python -m haikd.launch --config=configs/scenes_fcn_from_fcn.py

The data set and the network are in `my_pkg/tasks.py` beside this file.
"""

from haikd import config as config_lib


def get_config(variant=''):
  config = config_lib.base()
  config.plugins = ('my_pkg.tasks',)
  config.baseline = True
  config.steps = 600
  config.batch_size = 50
  config.data.name = 'scenes'
  config.evaluation.keep_best = 'miou'
  config.evaluation.every = 60

  config.teacher.model = config.student.model = 'fully_convolutional'
  config.teacher.options = dict(channels=(32, 32, 32))
  config.teacher.train.steps = 600
  config.teacher.train.optimizer.learning_rate = 5e-3

  config.student.options = dict(channels=(8, 8))
  config.optimizer.learning_rate = 1e-2
  config.distillation.temperature = 1.0
  return config_lib.variant(config, variant)
