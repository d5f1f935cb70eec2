"""The default job: an MLP learns handwritten digits from a convolutional net."""

from haikd import config as config_lib


def get_config(variant=''):
  config = config_lib.base()
  config.baseline = True
  config.steps = 2000
  config.batch_size = 128
  config.data.name = 'digits'
  config.data.augment = dict(shift=dict(pixels=1), mixup=dict(alpha=1.0))
  config.teacher.model = 'convnet'
  config.teacher.options = dict(channels=(32, 64))
  config.teacher.train.steps = 1000
  config.teacher.train.augment = dict(shift=dict(pixels=1))
  config.teacher.train.optimizer.learning_rate = 2e-3
  config.teacher.train.optimizer.weight_decay = 0.05
  config.student.model = 'mlp'
  config.student.options = dict(hidden=(32,))
  config.optimizer.learning_rate = 5e-3
  config.optimizer.weight_decay = 0.01
  return config
