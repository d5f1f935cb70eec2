"""Digits: a vision transformer learns in the two stages of TinyBERT.

  python -m haikd.launch --config=configs/digits_tinybert.py

In the first stage the student learns the teacher's scores of attention, before
the softmax, and, through learned maps, its hidden states, layer by layer; in
the second one its predictions, at temperature 1 and without labels. Each stage
has its own optimizer.

Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding,
arXiv:1909.10351, section 3.2.
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

  config.student.model = 'vit'
  config.student.options = dict(
      patch_size=2, width=32, depth=2, heads=4, mlp_ratio=2.0, pool='mean')
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 50

  config.distillation.alpha = 1.0
  config.distillation.temperature = 1.0
  config.student.taps = config.teacher.taps = dict(
      query='block_*/attn/query', key='block_*/attn/key')
  config.losses.attention = dict(
      loss='attention_scores_mse', options=dict(heads=4))
  config.losses.hidden = dict(loss='feature_matching', align='project')
  config.stages.intermediate = dict(start=0, distillation=dict(alpha=None))
  config.stages.prediction = dict(
      start=0.5, losses=dict(attention=None, hidden=None))
  return config_lib.variant(config, variant)
