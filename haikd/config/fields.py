"""The base config: every field there is, with its default and its meaning.

A config file starts from `base()`, changes what it wants and returns it;
`validate` refuses what is mistyped or cannot be, before any device work. `None`
stands for "decide for me".
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from haikd.config import rules
from haikd.core import checks

ConfigDict = ml_collections.ConfigDict

# Fields whose content is up to what they configure: any key may be added.
OPEN_FIELDS = ('student.options', 'student.taps', 'student.placement',
               'teacher.options', 'teacher.taps', 'teacher.placement',
               'data.options', 'data.augment', 'losses',
               'teacher.train.augment', 'optimizer.options',
               'teacher.train.optimizer.options')


def _any(default: Any = None) -> config_dict.FieldReference:
  return config_dict.FieldReference(default, field_type=rules.ANY)


def network() -> ConfigDict:
  """Returns the fields that teacher and student have in common."""
  return ConfigDict(
      dict(
          model='mlp',  # A registered model.
          options={},  # Its keyword options.
          taps={},  # {kind: glob over module names}; {} for the model's own.
          precision='float32',  # What it computes in: or bfloat16, float16.
          init=config_dict.placeholder(str),  # Weights to start from: a
          # workdir, hf:<folder> or gguf:<file>.
          init_layers=_any(),  # Of these, which layers to take, such as
          # (0, 2, 4); None for all, one to one.
          remat=config_dict.placeholder(str),  # What blocks recompute: none,
          # gathers, dots or full; None for gathers where parameters are split.
          remat_modules=config_dict.placeholder(str),  # Which these are: a glob
          # over module names; None for the model's own.
          placement={},  # {glob over parameters: axis to split over tensor};
          # as a flag --config.student.placement['mlp/up/w']=-1.
      ))


def optimizer() -> ConfigDict:
  """Returns the fields of an optimizer."""
  return ConfigDict(
      dict(
          name='adamw',  # adamw, sgd, lamb, adafactor or muon.
          learning_rate=1e-3,  # At its peak.
          schedule='cosine',  # constant, cosine or linear, after the warm-up.
          warmup_steps=0,
          final_fraction=0.0,  # Of the peak, at the last step.
          weight_decay=0.0,  # On kernels and embeddings alone.
          clip_norm=config_dict.placeholder(float),  # Of the global gradient.
          ema_decay=0.0,  # Of a running mean of the parameters; 0 for none.
          options={},  # Further keyword arguments of the optax function.
      ))


def base() -> ConfigDict:
  """Returns the documented base config.

  Returns:
    An unlocked ConfigDict with every field of haikd.
  """
  config = ConfigDict(
      dict(
          seed=0,
          plugins=(),  # Modules to import before names are looked up.
          steps=1000,
          batch_size=128,  # Over all devices and microbatches.
          microbatches=1,  # Parts that a device works through one by one.
          chunk_mib=_any(),  # Logits that a device holds at once, in MiB of
          # float32; None for what suits it.
          log_every=50,  # Steps between lines of metrics.
          checkpoint_every=200,  # Steps between checkpoints.
          keep_checkpoints=2,
          baseline=False,  # Also train the student alone, for comparison.
      ))
  config.mesh = ConfigDict(
      dict(
          replica=1,  # Copies of everything; over slices, between which it is
          fsdp=-1,  # slow. Parameters are split over fsdp, and over tensor as
          tensor=1,  # placement says. -1 takes the rest of the devices.
      ))
  config.data = ConfigDict(
      dict(
          name='digits',  # A registered data set, or a name of tfds.
          options={},  # Keyword options of the data set.
          train='train',  # The split to train on.
          source_dir=config_dict.placeholder(str),  # Raw files, if it has any.
          data_dir=config_dict.placeholder(str),  # Prepared files of tfds.
          image_size=config_dict.placeholder(int),  # To make of images of any
          # size, height and width; None if all have one and keep it.
          augment={},  # {function: its options}: geometry, pixels, mixing.
          mean=_any(0.0),  # Images in [0, 1] become (image - mean) / std;
          std=_any(1.0),  # a number, or a tuple with one for each channel.
          prefetch=4,  # Batches to read ahead.
      ))
  config.evaluation = ConfigDict(
      dict(
          every=_any(),  # Steps; None for ten times over the run.
          split='validation',  # While training; choices are made on this one.
          final='test',  # At the end, for the table.
          batch_size=512,
      ))
  config.student = network()
  config.teacher = network()
  config.teacher.train = ConfigDict(
      dict(
          steps=0,  # To train a teacher that has no weights yet; 0 to refuse.
          augment={},  # As data.augment, for the teacher's own training.
          optimizer=optimizer(),
      ))
  config.distillation = ConfigDict(
      dict(
          temperature=_any(2.0),  # T, or a schedule of it, as in `term`.
          alpha=0.9,  # Of the soft term; 1 - alpha weighs the labels.
          use_attention_transfer=False,
          attention_loss_weight=0.1,
          attention_match_layers=_any(),  # None, (0, 2), ((0, 1), …), a name.
          use_feature_matching=False,
          feature_loss_weight=0.1,
          feature_match_layers=_any(),
      ))
  config.losses = ConfigDict()  # {term: dict(loss=…, weight=…, …)}
  config.optimizer = optimizer()
  return config


def term(**fields: Any) -> ConfigDict:
  """Returns one entry of `config.losses`, with the defaults filled in.

  Args:
    **fields: any of these. `loss` is a registered loss; `weight` a number or a
      schedule `dict(kind='linear', start=0., end=1., steps=1000)`;
      `layers` what `haikd.align.pair_layers` takes; `align` a registered
      aligner with `align_options`, or 'auto' for `pool`, and `none` where the
      loss takes any width; `options` go to the loss, and each of them may be
      such a schedule.

  Returns:
    A ConfigDict with every field.
  """
  return ConfigDict(
      dict(
          loss=fields.pop('loss', ''),
          weight=fields.pop('weight', 1.0),
          layers=_any(fields.pop('layers', None)),
          align=fields.pop('align', 'auto'),
          align_options=fields.pop('align_options', {}),
          options=fields.pop('options', {}),
          **fields))


def variant(config: ConfigDict, name: str) -> ConfigDict:
  """Returns a config, or its variant `:smoke`, which is over in seconds.

  Args:
    config: a config made from `base()`.
    name: what stands behind the colon in `--config=file.py:name`.

  Returns:
    The config itself, changed if `name` is 'smoke'.

  Raises:
    ConfigError: any other name than '' and 'smoke'.
  """
  if name == 'smoke':
    config.steps = 6
    config.batch_size = min(config.batch_size, 32)
    config.log_every = 2
    config.checkpoint_every = 3
    for field in ('split', 'final'):
      whole, _, _ = config.evaluation[field].partition('[')
      config.evaluation[field] = f'{whole}[:64]'
    config.teacher.train.steps = min(config.teacher.train.steps, 4)
    config.optimizer.warmup_steps = 0
    config.teacher.train.optimizer.warmup_steps = 0
  elif name:
    raise checks.ConfigError(
        f'config.variant: variant must be smoke or left out; got {name!r}.')
  return config


def validate(config: ConfigDict) -> None:
  """Refuses a config that cannot work, before any device work.

  Names of losses, models, data sets and aligners are looked up later, when the
  plugins have been imported.

  Args:
    config: a config made from `base()`.

  Raises:
    ConfigError: an unknown field (the closest is named), a value of the wrong
      type, or a number out of its range.
  """
  rules.check_fields(config, base(), OPEN_FIELDS)
  for name, entry in config.losses.items():
    rules.check_term(f'config.losses.{name}', entry, term())
  rules.check_rules(config)
