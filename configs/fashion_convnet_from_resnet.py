"""Fashion-MNIST: a small convolutional net learns from a residual network.

  python -m haikd.launch --config=configs/fashion_convnet_from_resnet.py

The config reads the idx files from the folder of Debian's package
dataset-fashion-mnist; for another folder, set --config.data.source_dir.

The student has a fiftieth of the teacher's parameters and sees each image three
and a half times. At that size and in that time it cannot learn the tail of the
teacher's distribution: a temperature of 1 helps, and higher ones hurt.
"""

from haikd import config as config_lib


def get_config(variant=''):
  config = config_lib.base()
  config.baseline = True
  config.steps = 1500
  config.batch_size = 128
  config.data.name = 'fashion'
  config.data.source_dir = '/usr/share/datasets/fashion-mnist'
  config.data.mean = 0.286
  config.data.std = 0.353

  config.teacher.model = 'resnet'
  config.teacher.options = dict(
      blocks=(1, 1, 1), channels=(32, 64, 128), bottleneck=False, stem=32)
  config.teacher.train.steps = 1500
  config.teacher.train.augment = dict(flip={})
  config.teacher.train.optimizer.learning_rate = 2e-3
  config.teacher.train.optimizer.weight_decay = 0.05

  config.student.model = 'convnet'
  config.student.options = dict(channels=(8, 16, 32))
  config.optimizer.learning_rate = 4e-3
  config.optimizer.weight_decay = 0.01
  config.distillation.temperature = 1.0
  return config_lib.variant(config, variant)
