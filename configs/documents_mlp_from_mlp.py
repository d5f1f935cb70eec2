"""Several labels at once: a small perceptron learns from a wide one.

  python -m haikd.launch --config=configs/documents_mlp_from_mlp.py

The data set is in `my_pkg/tasks.py` beside this file.
"""

from haikd import config as config_lib


def get_config(variant=''):
  config = config_lib.base()
  config.plugins = ('my_pkg.tasks',)
  config.baseline = True
  config.steps = 600
  config.batch_size = 50
  config.data.name = 'documents'
  config.evaluation.keep_best = 'binary_cross_entropy'
  config.evaluation.every = 30

  config.teacher.options = dict(hidden=(256, 256))
  config.teacher.train.steps = 300
  config.teacher.train.optimizer.learning_rate = 1e-3
  config.teacher.train.optimizer.weight_decay = 1.0

  config.student.options = dict(hidden=(16,))
  config.optimizer.learning_rate = 1e-2
  return config_lib.variant(config, variant)
