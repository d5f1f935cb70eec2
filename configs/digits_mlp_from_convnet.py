"""The first example: an MLP learns handwritten digits from a convolutional net.

  python -m haikd.launch --config=configs/digits_mlp_from_convnet.py

The teacher has three times as many parameters as the student. It was trained on
shifted and mixed digits. The student sees 897 images without augmentation, so
the teacher knows more than the student could learn from their labels.
"""

from haikd import config as config_lib


def get_config(variant=''):
  config = config_lib.base()
  config.baseline = True
  config.steps = 600
  config.batch_size = 128
  config.data.name = 'digits'

  config.teacher.model = 'convnet'
  config.teacher.options = dict(channels=(64, 128))
  config.teacher.train.steps = 1000
  config.teacher.train.augment = dict(
      shift=dict(pixels=1), mixup=dict(alpha=0.2))
  config.teacher.train.optimizer.learning_rate = 2e-3
  config.teacher.train.optimizer.weight_decay = 0.05

  config.student.model = 'mlp'
  config.student.options = dict(hidden=(128, 128))
  config.optimizer.learning_rate = 5e-3
  config.optimizer.weight_decay = 0.01
  config.distillation.temperature = 4.0
  return config_lib.variant(config, variant)
