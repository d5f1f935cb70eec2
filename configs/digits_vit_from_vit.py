"""Digits: a vision transformer learns from one of twice its size.

  python -m haikd.launch --config=configs/digits_vit_from_vit.py

The student also matches attention maps and hidden states. The teacher has 4
layers of width 64 with 4 heads; the student has 2 layers of width 32 with 2
heads. Layers are paired uniformly, features and heads are pooled.
"""

from haikd import config as config_lib


def get_config(variant=''):
  config = config_lib.base()
  config.baseline = True
  config.steps = 800
  config.batch_size = 128
  config.data.name = 'digits'
  config.data.augment = dict(shift=dict(pixels=1))

  config.teacher.model = 'vit'
  config.teacher.options = dict(
      patch_size=2, width=64, depth=4, heads=4, mlp_ratio=2.0, pool='mean')
  config.teacher.train.steps = 600
  config.teacher.train.augment = dict(shift=dict(pixels=1))
  config.teacher.train.optimizer.learning_rate = 2e-3
  config.teacher.train.optimizer.warmup_steps = 50
  config.teacher.train.optimizer.weight_decay = 0.05

  config.student.model = 'vit'
  config.student.options = dict(
      patch_size=2, width=32, depth=2, heads=2, mlp_ratio=2.0, pool='mean')
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.weight_decay = 0.05

  config.distillation.use_attention_transfer = True
  config.distillation.attention_loss_weight = 1.0
  config.distillation.use_feature_matching = True
  config.distillation.feature_loss_weight = 0.1
  return config_lib.variant(config, variant)
