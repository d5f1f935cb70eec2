"""Regression: a small perceptron learns from a wide one, on noisy labels.

  python -m haikd.launch --config=configs/friedman_mlp_from_mlp.py

The data set is in `my_pkg/tasks.py` beside this file.
"""

from haikd import config as config_lib


def get_config(variant=''):
  config = config_lib.base()
  config.plugins = ('my_pkg.tasks',)
  config.baseline = True
  config.steps = 1000
  config.batch_size = 50
  config.data.name = 'friedman'
  config.evaluation.keep_best = 'mse'
  config.evaluation.every = 50

  config.teacher.options = dict(hidden=(32, 32))
  config.teacher.train.steps = 2000
  config.teacher.train.optimizer.learning_rate = 1e-2
  config.teacher.train.optimizer.weight_decay = 0.1

  config.student.options = dict(hidden=(8,))
  config.optimizer.learning_rate = 1e-2
  return config_lib.variant(config, variant)
