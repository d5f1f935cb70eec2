"""Digits: a thin, deep student learns in the two stages of FitNets.

  python -m haikd.launch --config=configs/digits_fitnets.py

In the first stage the lower half of the student learns what the teacher's
first layer sees, through a learned map, and the upper half stands still; in the
second one all of it learns from logits and labels. Each stage has its own
optimizer.

Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550.
"""

from haikd import config as config_lib


def get_config(variant=''):
  config = config_lib.base()
  config.baseline = True
  config.steps = 600
  config.batch_size = 128
  config.data.name = 'digits'

  config.teacher.model = 'convnet'
  config.teacher.options = dict(channels=(32, 64))
  config.teacher.train.steps = 600
  config.teacher.train.augment = dict(shift=dict(pixels=1))
  config.teacher.train.optimizer.learning_rate = 2e-3

  config.student.model = 'convnet'
  config.student.options = dict(channels=(8, 8, 12, 12), pool='none')
  config.optimizer.learning_rate = 5e-3
  config.distillation.temperature = 3.0

  config.losses.hint = dict(
      loss='feature_matching', layers=((1, 0),), align='project')
  config.stages.hints = dict(
      start=0,
      distillation=dict(alpha=None),
      optimizer=dict(frozen=('stage_2', 'stage_3', 'logits')))
  config.stages.distillation = dict(start=1 / 3, losses=dict(hint=None))
  return config_lib.variant(config, variant)
