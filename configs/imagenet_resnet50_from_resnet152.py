"""ImageNet: a ResNet-50 matches the function of a ResNet-152, patiently.

  python -m haikd.launch --config=configs/imagenet_resnet50_from_resnet152.py \
      --workdir=DIR --config.data.data_dir=PREPARED \
      --config.teacher.init=TEACHER

PREPARED holds `imagenet2012` as tensorflow-datasets prepares it with
`file_format='array_record'`. TEACHER is a workdir of a trained ResNet-152.

The recipe is that of Beyer et al., arXiv:2106.05237. Teacher and student see
the same random crop, mirrored and mixed with another image in a proportion that
is uniform between 0 and 1. Labels are not used. Training takes 1200 epochs. The
numbers are those of the authors' published configuration (big_vision,
`configs/proj/distill/bit_i1k.py`). Its weight decay of 3e-4 is not multiplied
by its learning rate of 0.03; ours is, and is therefore 0.01.

Their result is 82.8 % top-1 for a ResNet-50 at 224 pixels. Its teachers were
two BiT ResNet-152x2, pretrained on ImageNet-21k, at 224 and 384 pixels (83.0 %
and 84.3 %), and it was trained for even longer. All these networks have
GroupNorm and standardised weights. 300 epochs took 15 hours on 32 cores of TPU
v3.

We have not run this config, and no result is known; it will be lower. The
networks here have BatchNorm, which may need a smaller learning rate, and the
teacher has the width and the data of arXiv:1512.03385.
"""

from haikd import config as config_lib

EPOCHS = 1200
TRAIN_IMAGES = 1_255_544  # 98 % of 1,281,167.


def get_config(variant=''):
  config = config_lib.base()
  config.batch_size = 4096
  config.steps = EPOCHS * TRAIN_IMAGES // config.batch_size
  config.checkpoint_every = 1000
  config.data.name = 'imagenet2012'
  config.data.train = 'train[:98%]'
  config.data.image_size = 224
  config.data.augment = dict(
      random_resized_crop={}, flip={}, mixup=dict(alpha=1.0))
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  config.evaluation.every = 5000
  config.evaluation.split = 'train[98%:]'
  config.evaluation.final = 'validation'
  config.evaluation.batch_size = 4096

  config.teacher.model = 'resnet'
  config.teacher.options = dict(depth=152)
  config.teacher.precision = 'bfloat16'

  config.student.model = 'resnet'
  config.student.options = dict(depth=50)
  config.student.precision = 'bfloat16'
  config.optimizer.learning_rate = 0.03
  config.optimizer.warmup_steps = 5000
  config.optimizer.weight_decay = 0.01
  config.optimizer.clip_norm = 1.0

  config.distillation.temperature = 1.0
  config.distillation.alpha = 1.0
  return config_lib.variant(config, variant)
