"""A teaching assistant: a small MLP learns digits by way of a middling one.

  python -m haikd.launch --config=configs/digits_chain.py

A convolutional net teaches an MLP, which teaches an MLP of a tenth of its size.
All three are trained in one workdir; each goes on where it was stopped.
"""

from haikd import config as config_lib


def get_config(variant=''):
  config = config_lib.base()
  config.steps = 600
  config.batch_size = 128
  config.baseline = True
  config.data.name = 'digits'

  config.teacher.model = 'convnet'
  config.teacher.options = dict(channels=(64, 128))
  config.teacher.train.steps = 1000
  config.teacher.train.augment = dict(
      shift=dict(pixels=1), mixup=dict(alpha=0.2))
  config.teacher.train.optimizer.learning_rate = 2e-3
  config.teacher.train.optimizer.weight_decay = 0.05

  config.assistants.middle = config_lib.assistant(
      model='mlp', options=dict(hidden=(128, 128)), steps=600,
      optimizer=dict(learning_rate=5e-3, weight_decay=0.01))

  config.student.model = 'mlp'
  config.student.options = dict(hidden=(24, 24))
  config.optimizer.learning_rate = 5e-3
  config.optimizer.weight_decay = 0.01
  config.distillation.temperature = 4.0
  return config_lib.variant(config, variant)
