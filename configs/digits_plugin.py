"""Digits with a loss of one's own, from a module outside of haikd.

  python -m haikd.launch --config=configs/digits_plugin.py
"""

import digits_mlp_from_convnet


def get_config(variant=''):
  config = digits_mlp_from_convnet.get_config(variant)
  config.plugins = ('my_pkg.losses',)
  config.losses.huber = dict(
      loss='huber_features', weight=0.1, layers=((0, 1),), align='project')
  return config
