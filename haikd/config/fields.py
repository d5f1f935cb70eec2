"""The base config: every field, with its default and its meaning.

A config file starts from `base()`, changes the fields it needs and returns the
config. `validate` refuses misspelt fields and impossible values before any
device work. Unless a field says otherwise, `None` lets haikd decide.

The comment above each field is its documentation.
"""

from ml_collections import config_dict

from haikd.config import balancing
from haikd.config import entries
from haikd.config import entry_rules
from haikd.config import networks
from haikd.config import recorded
from haikd.config import rules
from haikd.config import stages
from haikd.config import table as table_lib
from haikd.config import watching
from haikd.core import checks
from haikd.core import secrets

ConfigDict = networks.ConfigDict

# Fields that accept any key; their keys belong to what they configure.
OPEN_FIELDS = ('student.options', 'student.taps', 'student.placement',
               'teacher.options', 'teacher.taps', 'teacher.placement',
               'teacher.records', 'data.options', 'data.augment',
               'data.mixture', 'losses', 'assistants', 'stages',
               'teacher.train.augment', 'evaluation.metrics',
               'optimizer.options',
               'optimizer.lr_multipliers', 'teacher.train.optimizer.options',
               'teacher.train.optimizer.lr_multipliers')
# Fields that may be None though their default is not.
OPTIONAL_FIELDS = ('distillation.alpha',)


class Config(ConfigDict):
  """A config that prints as a table of its fields, values and defaults."""

  def __str__(self) -> str:
    return table_lib.table(self, base(), OPEN_FIELDS)


def base() -> ConfigDict:
  """Returns the documented base config.

  Returns:
    An unlocked ConfigDict with every field, which `print` shows as a table.
  """
  config = Config(
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
          chunk_mib=networks.free(),
          # Steps between lines of metrics.
          log_every=50,
          # Steps between checkpoints.
          checkpoint_every=200,
          # What happens if one cannot be written: stop ends the run, go_on
          # trains on with those before it. Several processes always stop.
          checkpoint_on_error='stop',
          # How many of the newest checkpoints are kept.
          keep_checkpoints=2,
          # Whether to train the student alone as well, for comparison.
          baseline=False,
          # Parts of the student's training in which fields of losses,
          # distillation, optimizer and data.mixture, or the teacher, are
          # others, as {stage: dict(start=…, losses=…, …)}; start is a step, or
          # a share below 1.
          stages={},
          # How the weights of the losses, which it multiplies, are balanced
          # while the student trains: fixed, gradient_norm, uncertainty or dtp,
          # or a dict of one and its options: dict(kind='dtp', gamma=2.0).
          balance=networks.free('fixed'),
          # Where metrics go too: wandb, mlflow, trackio or a plugin's writer.
          tracker=config_dict.placeholder(str),
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
          # Keyword options of the data set; 'env:NAME' stands for what the
          # environment variable NAME holds, such as a token.
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
          # Where images are resized: the share of their shorter side that is
          # the side of the square at the centre, which alone is used.
          crop=0.875,
          # Augmentations of training images, as {name: options}; applied in the
          # order size, geometry, pixels, mix.
          augment={},
          # Mean to subtract from images in [0, 1]: a number, or a tuple with
          # one number per channel.
          mean=networks.free(0.0),
          # Standard deviation by which these images are then divided: a number,
          # or a tuple with one number per channel.
          std=networks.free(1.0),
          # Batches to read ahead; None for 4, or one more than workers.
          prefetch=config_dict.placeholder(int),
          # Processes that make batches, 0 for threads of this one; None for
          # half of the cores, from 4 and up to 8, where images are decoded.
          workers=config_dict.placeholder(int),
          # MiB that a file may take once it is decoded; else it is refused.
          memory_mib=4096,
          # What is done about an example that cannot be used: stop, or skip it.
          on_error='stop',
          # Examples of a split that are skipped, at most.
          max_skipped=100,
      ))
  # What is done about numbers that are not finite, and about hangs.
  config.guard = watching.guard()
  # Evaluation during training and at its end.
  config.evaluation = ConfigDict(
      dict(
          # Training steps between evaluations; None for a tenth of the run.
          every=networks.free(),
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
          # Evaluations without a better one that end training; None for none.
          patience=networks.free(),
      ))
  # The page that a run ends with, report.html in the workdir.
  config.report = watching.report()
  # A trace of some steps of the student, in the folder profile of the workdir.
  config.profile = watching.profile()
  # What --mode=sweep trains: methods, each a variant of the config file.
  config.sweep = ConfigDict(
      dict(
          # Variants of the config file, such as ('kl', 'dist'), of which the
          # first is what the others are compared with. All learn from the
          # teacher of the config without a variant.
          methods=(),
          # Factors of optimizer.learning_rate that each method is tried with.
          learning_rates=(1.0,),
          # Factors of the weights in losses, likewise, in all combinations.
          weights=(1.0,),
          # Metric of the student on evaluation.split, by which the factors of
          # each method are chosen.
          metric='accuracy',
      ))
  # The small network that is trained.
  config.student = networks.network()
  # The large network that is learned from; without weights there is none, and
  # no term may compare with it.
  config.teacher = networks.network()
  # How the teacher sees images, where it is not as the data's fields say.
  config.teacher.view = networks.view()
  # Its predictions, recorded by --mode=teach, to learn from in its place, as
  # dict(path=…, kind=…); {} for the teacher itself.
  config.teacher.records = ConfigDict()
  # How a teacher on a server is asked, with --mode=teach --server=….
  config.teacher.server = networks.server()
  # Networks between teacher and student, {name: haikd.config.assistant(…)}: in
  # the order of their names, each learns from the one before.
  config.assistants = ConfigDict()
  # How the teacher is trained, if it has no weights yet.
  config.teacher.train = ConfigDict(
      dict(
          # Steps to train a teacher that has no weights; 0 for no teacher.
          steps=0,
          # Augmentations while the teacher is trained, as data.augment.
          augment={},
          # Optimizer of the teacher's training.
          optimizer=networks.optimizer(),
      ))
  # The standard recipe: soft and hard labels, attention maps and features.
  config.distillation = ConfigDict(
      dict(
          # Temperature T of the soft term: a number, or a schedule such as
          # dict(kind='linear', start=4., end=1., steps=1000). Kinds are
          # constant, linear, cosine, exponential and piecewise.
          temperature=networks.free(2.0),
          # Weight of the soft term, a number or a schedule; 1 - alpha is the
          # weight of the labels. None leaves both out.
          alpha=networks.free(0.9),
          # The part of each label that is spread evenly over all classes, from
          # 0 to below 1. A teacher that is trained here learns from sharp ones.
          label_smoothing=0.0,
          # Whether to compare attention maps.
          use_attention_transfer=False,
          # Weight of the loss on attention maps: a number or a schedule.
          attention_loss_weight=networks.free(0.1),
          # Layers whose attention maps are compared: (0, 2) for the same layers
          # of both networks, ((0, 1), (2, 5)) for (student, teacher) pairs, or
          # uniform, last or pool; None for all layers of the student.
          attention_match_layers=networks.free(),
          # Whether to compare features, that is hidden states.
          use_feature_matching=False,
          # Weight of the loss on features: a number or a schedule.
          feature_loss_weight=networks.free(0.1),
          # Layers whose features are compared, in the forms of
          # attention_match_layers; None for all layers of the student.
          feature_match_layers=networks.free(),
      ))
  # Further loss terms, as {term: dict(loss=…, weight=…, …)}.
  config.losses = ConfigDict()
  # Optimizer of the student.
  config.optimizer = networks.optimizer()
  return config


def validate(config: ConfigDict) -> None:
  """Refuses a config that cannot work, before any device work.

  Names of what plugins register are looked up later.

  Args:
    config: a config made from `base()`.

  Raises:
    ConfigError: an unknown field (the message has the closest one), a value of
      the wrong type, a number out of its range, or a secret.
  """
  secrets.check(config)  # First, so that no other message repeats one.
  rules.check_fields(config, base(), OPEN_FIELDS, OPTIONAL_FIELDS)
  for name, entry in config.assistants.items():
    entry_rules.check_assistant(
        f'assistants.{name}', entry, entries.assistant())
  for name, entry in config.losses.items():
    entry_rules.check_term(f'config.losses.{name}', entry, entries.term())
  for name, entry in config.data.mixture.items():
    entry_rules.check_component(
        f'config.data.mixture.{name}', entry, entries.component(1.0))
  rules.check_rules(config)
  balancing.check(config)
  watching.check(config)
  if config.teacher.records:
    recorded.check(config.teacher.records)
  if config.stages:
    for stage in stages.stages_of(config):
      with checks.errors_of(stage.field):
        validate(stage.config)
