"""Digits with a user's loss, from a module outside haikd.

  python -m haikd.launch --config=configs/digits_plugin.py

The loss is in `my_pkg/losses.py` beside this file. It compares the last hidden
states, after a learned projection from the student's width to the teacher's.
"""

import digits_vit_from_vit

from haikd import config as config_lib


def get_config(variant=''):
  config = digits_vit_from_vit.get_config()
  config.distillation.use_attention_transfer = False
  config.distillation.use_feature_matching = False
  config.plugins = ('my_pkg.losses',)
  config.losses.huber = dict(
      loss='huber_features',
      weight=0.1,
      layers='last',
      align='project',
      options=dict(delta=2.0))
  return config_lib.variant(config, variant)
