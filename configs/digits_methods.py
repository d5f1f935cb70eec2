"""Digits: which method teaches a small convolutional net most?

  python -m haikd --config=configs/digits_methods.py --mode=sweep --seeds=3
  python -m haikd --config=configs/digits_methods.py:dist

All methods have one teacher, one student and one budget. The teacher has seen
all 897 images, shifted; the student sees 200 of them. To the loss on their
labels each method adds its own. The learning rate and the weight of each are
chosen on the validation split from the same four pairs. With the smaller weight
a method's gradient is as large as that of the labels, within a factor of two,
after five steps.
"""

from haikd import config as config_lib

_LAST = dict(layers='last')
METHODS = dict(
    kl=dict(kl=dict(
        loss='kl_divergence', options=dict(temperature=4.0))),
    alone={},
    reverse_kl=dict(kl=dict(
        loss='reverse_kl', options=dict(temperature=4.0))),
    jensen_shannon=dict(js=dict(
        loss='jensen_shannon', weight=3.0,
        options=dict(temperature=4.0, beta=0.5))),
    decoupled_kd=dict(dkd=dict(
        loss='decoupled_kd', weight=0.2, options=dict(temperature=4.0))),
    dist=dict(dist=dict(
        loss='dist', weight=0.1, options=dict(temperature=4.0))),
    logit_mse=dict(logits=dict(loss='logit_mse', weight=3.0)),
    fitnets=dict(hint=dict(loss='feature_matching', align='project')),
    activation_attention=dict(
        maps=dict(loss='activation_attention', weight=3.0)),
    similarity_preserving=dict(similarities=dict(
        loss='similarity_preserving', weight=2000.0, **_LAST)),
    relational=dict(
        distance=dict(loss='relational_distance', weight=20.0, **_LAST),
        angle=dict(loss='relational_angle', weight=40.0, **_LAST)),
    cka=dict(cka=dict(loss='cka', weight=3.0, **_LAST)),
    contrastive=dict(contrast=dict(
        loss='contrastive', weight=0.2, options=dict(data_size=200), **_LAST)),
)


def get_config(variant=''):
  config = config_lib.base()
  config.steps = 300
  config.batch_size = 64
  config.checkpoint_every = 300
  config.evaluation.every = 300
  config.data.name = 'digits'
  if variant in METHODS:
    config.data.train = 'train[:200]'

  config.teacher.model = 'convnet'
  config.teacher.options = dict(channels=(64, 128))
  config.teacher.train.steps = 600
  config.teacher.train.augment = dict(shift=dict(pixels=1))
  config.teacher.train.optimizer.learning_rate = 2e-3

  config.student.model = 'convnet'
  config.student.options = dict(channels=(6, 12))
  config.optimizer.learning_rate = 1e-2

  config.distillation.alpha = 0.0  # Labels alone, beside each method.
  config.sweep.learning_rates = (1.0, 3.0)
  config.sweep.weights = (1.0, 10.0)
  return config_lib.variant(config, variant, METHODS)
