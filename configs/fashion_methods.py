"""Fashion-MNIST with 500 labels: which method teaches most?

  python -m haikd --config=configs/fashion_methods.py --mode=sweep --seeds=3

The teacher has learned from all labels. The student has those of 500 images,
and sees all 54,000: a quarter of each batch is labelled, and what the teacher
says, or sees, is learned from all of the batch. Learning rate and weight of
each method are chosen on the validation split from the same four pairs. One
method alone needs --config.teacher.init=runs/fashion_methods/teacher.
"""

from haikd import config as config_lib

_FOLDER = '/usr/share/datasets/fashion-mnist'
_LAST = dict(layers='last')
METHODS = dict(
    kl=dict(kl=dict(
        loss='kl_divergence', options=dict(temperature=2.0))),
    alone={},
    dist=dict(dist=dict(
        loss='dist', weight=0.1, options=dict(temperature=2.0))),
    logit_mse=dict(logits=dict(loss='logit_mse')),
    fitnets=dict(hint=dict(loss='feature_matching', align='project')),
    relational=dict(
        distance=dict(loss='relational_distance', weight=20.0, **_LAST),
        angle=dict(loss='relational_angle', weight=40.0, **_LAST)),
)


def get_config(variant=''):
  config = config_lib.base()
  config.steps = 150
  config.batch_size = 128
  config.checkpoint_every = 150
  config.data.name = 'fashion'
  config.data.source_dir = _FOLDER
  config.data.mean = 0.286
  config.data.std = 0.353
  config.evaluation.every = 150
  if variant in METHODS:
    config.plugins = ('my_pkg.few_labels',)
    config.data.name = 'few_labels'
    config.data.mixture = dict(
        labelled=dict(weight=0.25, source_dir=_FOLDER,
                      options=dict(labelled=500)),
        unlabelled=dict(weight=0.75, source_dir=_FOLDER))
    config.evaluation.split = 'labelled/validation[:3000]'
    config.evaluation.final = 'labelled/test'

  config.teacher.model = 'convnet'
  config.teacher.options = dict(channels=(32, 64, 128))
  config.teacher.train.augment = dict(flip={})
  config.teacher.train.optimizer.learning_rate = 2e-3
  config.teacher.train.optimizer.weight_decay = 0.05
  if variant not in METHODS:  # A method has too few labels to train one.
    config.teacher.train.steps = 400

  config.student.model = 'convnet'
  config.student.options = dict(channels=(8, 16, 32))
  config.optimizer.learning_rate = 4e-3
  config.optimizer.weight_decay = 0.01

  config.distillation.alpha = 0.0  # Labels alone, beside each method.
  config.sweep.learning_rates = (0.5, 2.0)
  config.sweep.weights = (0.3, 3.0)
  return config_lib.variant(config, variant, METHODS)
