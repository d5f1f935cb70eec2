"""The base config: every field, with its default and its meaning.

A config file starts from `base()`, changes the fields it needs and returns the
config. `validate` refuses misspelt fields and impossible values before any
device work. Unless a field says otherwise, `None` lets haikd decide.

The comment above each field is its documentation.
"""

from typing import Any, TypeAlias

import ml_collections
from ml_collections import config_dict

from haikd.config import entries
from haikd.config import rules

ConfigDict: TypeAlias = ml_collections.ConfigDict

# Fields that accept any key; their keys belong to what they configure.
OPEN_FIELDS = ('student.options', 'student.taps', 'student.placement',
               'teacher.options', 'teacher.taps', 'teacher.placement',
               'data.options', 'data.augment', 'data.mixture', 'losses',
               'teacher.train.augment', 'evaluation.metrics',
               'optimizer.options',
               'optimizer.lr_multipliers', 'teacher.train.optimizer.options',
               'teacher.train.optimizer.lr_multipliers')
# Fields that may be None though their default is not.
OPTIONAL_FIELDS = ('distillation.alpha',)


def _any(default: Any = None) -> config_dict.FieldReference:
  return config_dict.FieldReference(default, field_type=rules.ANY)


def network() -> ConfigDict:
  """Returns the fields that teacher and student have in common."""
  return ConfigDict(
      dict(
          # Name of a registered model.
          model='mlp',
          # Keyword options of the model.
          options={},
          # Modules to capture, as {kind: glob over module names}; {} for the
          # model's own taps.
          taps={},
          # Compute dtype: float32, bfloat16 or float16.
          precision='float32',
          # Weights to start from: a workdir, npz:FILE, orbax:FOLDER, hf:FOLDER
          # or gguf:FILE; None for a random initialisation.
          init=config_dict.placeholder(str),
          # Which layers of these weights to take, such as (0, 2, 4); None for
          # all, one to one.
          init_layers=_any(),
          # How these weights are read.
          init_options=init_options(),
          # How many of its logits are used, the first ones, where its table
          # of tokens is longer than that of the tokenizer; None for all.
          used_classes=config_dict.placeholder(int),
          # What blocks recompute in the backward pass: none (nothing), gathers
          # (gathered parameters), dots (all but products with parameters) or
          # full (everything); None for gathers where parameters are split.
          remat=config_dict.placeholder(str),
          # Which modules these blocks are: a glob over module names; None for
          # the model's own blocks.
          remat_modules=config_dict.placeholder(str),
          # Parameters to split over the mesh axis tensor, as {glob over
          # parameters: axis}; as a flag,
          # --config.student.placement['mlp/up/w']=-1. The model's own rules
          # apply to all other parameters.
          placement={},
      ))


def init_options() -> ConfigDict:
  """Returns the fields on how pretrained weights are read."""
  return ConfigDict(
      dict(
          # Fields of config.json that haikd does not know, and globs over
          # tensors that it does not use, to ignore: an assurance that no output
          # depends on them.
          ignore=(),
      ))


def optimizer() -> ConfigDict:
  """Returns the fields of an optimizer."""
  return ConfigDict(
      dict(
          # Optimizer: adamw, sgd, lamb, adafactor or muon.
          name='adamw',
          # Learning rate at its peak.
          learning_rate=1e-3,
          # Learning rate after the warm-up: constant, cosine or linear.
          schedule='cosine',
          # Steps in which the learning rate rises to its peak; 0 for none.
          warmup_steps=0,
          # Learning rate at the last step, as a fraction of the peak; not used
          # by the constant schedule.
          final_fraction=0.0,
          # Weight decay of kernels and embeddings, multiplied by the learning
          # rate; other parameters do not decay.
          weight_decay=0.0,
          # Largest global norm of the gradient, which is scaled down to it;
          # None for no clipping.
          clip_norm=config_dict.placeholder(float),
          # Decay per step of a running mean of the parameters; 0 for no mean.
          ema_decay=0.0,
          # Parameters that stay as they are, without weight decay: globs over
          # modules or parameters, such as ('embed', 'block_*/attn', '*/b').
          # State, such as BatchNorm's statistics, is no parameter.
          frozen=(),
          # Factors of the learning rate by part, as {glob as in frozen:
          # factor}; where several match, all of them.
          lr_multipliers={},
          # Further keyword arguments of the optax function.
          options={},
      ))


def base() -> ConfigDict:
  """Returns the documented base config.

  Returns:
    An unlocked ConfigDict with every field of haikd.
  """
  config = ConfigDict(
      dict(
          # Seed of the run's random numbers, such as initial parameters, data
          # order and dropout.
          seed=0,
          # Modules to import before names are looked up, the plugins.
          plugins=(),
          # What labels are, which decides the standard terms and the metrics:
          # classification, dense (a class for each place of an image), tagging
          # (a class for each position of a sequence), multilabel or regression;
          # auto tells it from the labels.
          task='auto',
          # Training steps of the student.
          steps=1000,
          # Examples in a training step, over all devices and microbatches.
          batch_size=128,
          # Parts of a batch that a device computes one after another.
          microbatches=1,
          # Logits that a device holds at once, in MiB of float32; None for a
          # size that suits the platform.
          chunk_mib=_any(),
          # Steps between lines of metrics.
          log_every=50,
          # Steps between checkpoints.
          checkpoint_every=200,
          # How many of the newest checkpoints are kept.
          keep_checkpoints=2,
          # Whether to train the student alone as well, for comparison.
          baseline=False,
      ))
  # The device mesh; at most one axis may be -1.
  config.mesh = ConfigDict(
      dict(
          # Copies of all parameters; put the slow network between slices on
          # this axis. -1 for the remaining devices.
          replica=1,
          # Devices over which all parameters are split; -1 for the remaining
          # devices.
          fsdp=-1,
          # Devices over which the parameters that placement names are split; -1
          # for the remaining devices.
          tensor=1,
      ))
  # The data of training and evaluation.
  config.data = ConfigDict(
      dict(
          # Name of a registered data set, or one of tensorflow-datasets.
          name='digits',
          # Keyword options of the data set.
          options={},
          # Data sets to read as one, as {name: weight} or {name: dict(weight=…,
          # …)}; {} for the one above alone.
          mixture={},
          # Split to train on.
          train='train',
          # Folder of the data set's raw files; None if it has none.
          source_dir=config_dict.placeholder(str),
          # Folder of the prepared files; None for that of tensorflow-datasets.
          data_dir=config_dict.placeholder(str),
          # Height and width in pixels to resize images to; None if all images
          # have the same size and keep it.
          image_size=config_dict.placeholder(int),
          # Augmentations of training images, as {name: options}; applied in the
          # order size, geometry, pixels, mix.
          augment={},
          # Mean to subtract from images in [0, 1]: a number, or a tuple with
          # one number per channel.
          mean=_any(0.0),
          # Standard deviation by which these images are then divided: a number,
          # or a tuple with one number per channel.
          std=_any(1.0),
          # Batches to read ahead.
          prefetch=4,
      ))
  # Evaluation during training and at its end.
  config.evaluation = ConfigDict(
      dict(
          # Training steps between evaluations; None for a tenth of the run.
          every=_any(),
          # Split to evaluate on during training; decisions are based on it.
          split='validation',
          # Split to evaluate on at the end, for the table of results.
          final='test',
          # Examples in an evaluation batch, over all devices.
          batch_size=512,
          # Registered metrics to report besides, as {name: options}.
          metrics={},
          # Metric on the split during training, such as accuracy, by which the
          # best network is kept and used; None for the last network.
          keep_best=config_dict.placeholder(str),
          # Evaluations without a better one after which training stops; None to
          # take all steps.
          patience=_any(),
      ))
  # The small network that is trained.
  config.student = network()
  # The large network that is learned from.
  config.teacher = network()
  # How the teacher is trained, if it has no weights yet.
  config.teacher.train = ConfigDict(
      dict(
          # Steps to train a teacher that has no weights; 0 to refuse it.
          steps=0,
          # Augmentations while the teacher is trained, as data.augment.
          augment={},
          # Optimizer of the teacher's training.
          optimizer=optimizer(),
      ))
  # The standard recipe: soft and hard labels, attention maps and features.
  config.distillation = ConfigDict(
      dict(
          # Temperature T of the soft term: a number, or a schedule such as
          # dict(kind='linear', start=4., end=1., steps=1000).
          temperature=_any(2.0),
          # Weight of the soft term; 1 - alpha is the weight of the labels. None
          # leaves both out.
          alpha=config_dict.FieldReference(0.9, field_type=float),
          # Whether to compare attention maps.
          use_attention_transfer=False,
          # Weight of the loss on attention maps.
          attention_loss_weight=0.1,
          # Layers whose attention maps are compared: (0, 2) for the same layers
          # of both networks, ((0, 1), (2, 5)) for (student, teacher) pairs, or
          # uniform, last or pool; None for all layers of the student.
          attention_match_layers=_any(),
          # Whether to compare features, that is hidden states.
          use_feature_matching=False,
          # Weight of the loss on features.
          feature_loss_weight=0.1,
          # Layers whose features are compared, in the forms of
          # attention_match_layers; None for all layers of the student.
          feature_match_layers=_any(),
      ))
  # Further loss terms, as {term: dict(loss=…, weight=…, …)}.
  config.losses = ConfigDict()
  # Optimizer of the student.
  config.optimizer = optimizer()
  return config


def validate(config: ConfigDict) -> None:
  """Refuses a config that cannot work, before any device work.

  Names of losses, models, data sets and aligners are looked up later, after the
  plugins have been imported.

  Args:
    config: a config made from `base()`.

  Raises:
    ConfigError: an unknown field (the message has the closest one), a value of
      the wrong type, or a number out of its range.
  """
  rules.check_fields(config, base(), OPEN_FIELDS, OPTIONAL_FIELDS)
  for name, entry in config.losses.items():
    rules.check_term(f'config.losses.{name}', entry, entries.term())
  for name, entry in config.data.mixture.items():
    rules.check_component(
        f'config.data.mixture.{name}', entry, entries.component(1.0))
  rules.check_rules(config)
