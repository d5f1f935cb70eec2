"""Resolves the config: fills in what weights and data decide.

`from_pretrained` comes first. For the teacher's own training,
`teacher_training` makes its network the one that is trained. `with_vocabulary`
needs the data, which is built from the config.
"""

from typing import Any, Optional

from haikd import config as config_lib
from haikd import interop
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.core import registry
from haikd.core import signatures
from haikd.core import tasks as tasks_lib
from haikd.data.image import views
from haikd.objective import build
from haikd.run import image_views
from haikd.run import stage_teachers
from haikd.run import tasks
from haikd.run import two_tokenizers
from haikd.run import vocabularies
from haikd.storage import archive
from haikd.storage import orbax_tree

_ROLES = ('teacher', 'student')
_LABELS = {
    tasks_lib.REGRESSION: 'floating point, without num_classes',
    tasks_lib.MULTILABEL: 'numbers from 0 to 1 that do not sum to 1',
}


def from_pretrained(config: config_lib.ConfigDict) -> config_lib.ConfigDict:
  """Fills in what pretrained weights say about their networks and data.

  If `init` of a network is `hf:` or `gguf:`, the model and its options are read
  from there. Options in the config take precedence, so that a student may be
  shallower or narrower than the weights it starts from. The data gets what it
  accepts and the config does not give: the names of the classes in the
  network's order, and what `image_views` and `vocabularies` resolve. Data sets
  that join in a stage are in the mixture of the run.

  Args:
    config: a validated config, its plugins imported.

  Returns:
    A resolved copy. Resolving it again changes nothing.

  Raises:
    ConfigError: the config names another model than the weights, `init_layers`
      does not apply, or the networks have different tokenizers.
    DataError: the weights cannot be read, or are not supported.
  """
  config = config_lib.joined(config).copy_and_resolve_references()
  described = {}
  for role in _ROLES:
    _check_reading(role, config[role])
    if interop.is_pretrained(config[role].init):
      described[role] = _resolve_network(role, config)
  tasks.check(config)
  image_views.resolve(config, described)
  vocabularies.resolve(config, described)
  stage_teachers.resolve(config, from_pretrained)
  return config


def with_vocabulary(config: config_lib.ConfigDict, text: Any,
                    student_text: Any = None) -> config_lib.ConfigDict:
  """Gives encoders a vocabulary that holds the data's.

  A decoder has as many classes as the data has tokens. An encoder's
  `num_classes` is not its vocabulary size, and JAX clamps out-of-range ids to
  the last row silently.

  Args:
    config: a config from `from_pretrained`.
    text: the `data.source.TextInfo` of the data, or None.
    student_text: that of the student; None if it is the same.

  Returns:
    The config, or a changed copy.

  Raises:
    ConfigError: an encoder has fewer tokens than the data.
  """
  if text is None:
    return config
  config = config.copy_and_resolve_references()
  for field, network in (
      ('config.teacher', config.teacher), *stage_teachers.teachers(config)):
    _fit_vocabulary(config, field, network, text)
  _fit_vocabulary(config, 'config.student', config.student,
                  student_text or text)
  return config


def _fit_vocabulary(config, field, network, text):
  """Gives an encoder the vocabulary of its texts; refuses a smaller one."""
  function = registry.models[network.model].function
  if 'vocabulary' not in signatures.option_names(function):
    return
  size = network.options.get('vocabulary')
  if text.kept_ids is not None or size is None:
    with config.unlocked():
      network.options.vocabulary = text.size
  elif size < text.size:
    raise checks.ConfigError(
        f'{field}.options.vocabulary must be no smaller than that of the data; '
        f'got {size}, and the tokenizer {text.tokenizer} has {text.size}. Give '
        'the data the tokenizer of the network, or the network another '
        'vocabulary.')


def with_task(config: config_lib.ConfigDict,
              task: Optional[str]) -> config_lib.ConfigDict:
  """Fills in what the labels of the data are; says it if they are not classes.

  Args:
    config: a config from `from_pretrained`.
    task: of the data; None if it has no labels.

  Returns:
    The config, or a changed copy.
  """
  if config.task != tasks_lib.AUTO or task is None:
    return config
  predicts_vectors = 'embedding' in map(
      lambda role: tasks.task_of(config, role), _ROLES)
  if task != tasks_lib.CLASSIFICATION and not predicts_vectors:
    notes.say(f'config.task is {task}, as labels are {_LABELS[task]}; set it '
              'if they are something else.')
  config = config.copy_and_resolve_references()
  config.task = task
  return config


def has_teacher(config: config_lib.ConfigDict, spec: base.Batch,
                num_classes: Optional[int]) -> bool:
  """Returns whether a student has a teacher.

  Args:
    config: a config from `with_task`, of a student.
    spec: a batch of the data as ShapeDtypeStructs.
    num_classes: of the data; None if it has none.

  Raises:
    ConfigError: a term compares with a teacher that has no weights.
  """
  if config_lib.has_weights(config.teacher):
    return True
  field = build.needs_teacher(config, spec, num_classes)
  if field is not None:
    raise checks.ConfigError(
        f'config.teacher must have weights, since {field} compares with it; '
        'got init=None and train.steps=0. Point config.teacher.init at a '
        'workdir, or set config.teacher.train.steps. Losses on scores need no '
        'teacher where the data has scores.')
  return False


def alone(config: config_lib.ConfigDict) -> config_lib.ConfigDict:
  """Returns the config of the student alone.

  It has no stages, no balance, no trace, and none of the losses that take a
  teacher's scores from the data.

  Args:
    config: a config from `from_pretrained`.
  """
  resolved: Any = config_lib.without_stages(config)
  resolved.profile = config_lib.base().profile
  with resolved.unlocked():
    for name, term in config.losses.items():
      if registry.losses.find(term.loss, f'config.losses.{name}.loss').scores:
        del resolved.losses[name]
  with resolved.ignore_type():  # A dict of options may be replaced by a name.
    resolved.balance = config_lib.base().balance
  return resolved


def teacher_training(config: config_lib.ConfigDict) -> config_lib.ConfigDict:
  """Returns the config of the teacher's own training.

  Its `student` is the teacher's network, which is trained with the fields of
  `config.teacher.train`, by the terms that need no teacher.

  Args:
    config: a config from `from_pretrained`, of a teacher without `init`.
  """
  train = config.teacher.train
  resolved: Any = config_lib.ConfigDict(
      config_lib.without_stages(config).to_dict())
  defaults: Any = config_lib.base()
  resolved.steps, resolved.optimizer = train.steps, train.optimizer
  resolved.profile = defaults.profile
  resolved.data.augment = train.augment
  resolved.student = defaults.student
  resolved.student.update(
      {name: config.teacher[name] for name in defaults.student})
  if two_tokenizers.OPTION in resolved.data.options:
    with resolved.unlocked():  # Its texts are tokenized for the teacher.
      del resolved.data.options[two_tokenizers.OPTION]
  with resolved.data.ignore_type():  # A number may be replaced by a tuple.
    resolved.data.update(views.of_teacher(config))
  resolved.teacher, resolved.distillation = (
      defaults.teacher, defaults.distillation)
  resolved.distillation.alpha = config.distillation.alpha
  with resolved.ignore_type():  # A dict of options may be replaced by a name.
    resolved.balance = defaults.balance
  with resolved.unlocked():
    for name, term in config.losses.items():
      loss = registry.losses.find(term.loss, f'config.losses.{name}.loss')
      if loss.needs_teacher:
        del resolved.losses[name]
  return resolved


def _resolve_network(role, config) -> interop.Pretrained:
  """Fills in one network, and what the data gets from it alone."""
  network = config[role]
  default: Any = config_lib.network()
  described = interop.describe(
      network.init, ignore=network.init_options.ignore,
      field=f'config.{role}.init')
  if network.model not in (described.model, default.model):
    raise checks.ConfigError(
        f'config.{role}.model must be left out, or be that of {network.init}; '
        f'got {network.model!r} where it is {described.model!r}. Leave it out.')
  layers, depth = network.init_layers, network.options.get('depth')
  if layers is None and isinstance(depth, int):
    layers = range(depth)  # Another depth than all is refused later.
  options = interop.of_blocks(described.model, described.options, layers)
  options.update(config_lib.plain(network.options))
  network.model = described.model
  with config.unlocked():
    network.options = options
  _resolve_classes(config, described)
  return described


def _resolve_classes(config, described):
  """Fills in the names of classes."""
  name = config.data.name
  if (described.classes and name in registry.datasets.names() and
      'classes' in signatures.option_names(registry.datasets[name].function)):
    with config.unlocked():
      config.data.options = {'classes': described.classes,
                             **config_lib.plain(config.data.options)}


def _with_prefix(init: Optional[str]) -> Optional[str]:
  """Returns what to write for a path that lacks its prefix; None otherwise."""
  if not init or init.startswith((archive.PREFIX, orbax_tree.PREFIX)):
    return None
  if init.endswith('.npz'):
    return f'{archive.PREFIX}{init}'
  if orbax_tree.is_folder(init):
    return f'{orbax_tree.PREFIX}{init}'
  return interop.with_prefix(init)


def _check_reading(role, network):
  if interop.is_pretrained(network.init):
    return
  if prefixed := _with_prefix(network.init):
    raise checks.ConfigError(
        f'config.{role}.init must begin with hf:, gguf:, npz: or orbax: '
        f'where it is no workdir of haikd; got {network.init!r}. Set it to '
        f'{prefixed!r}.')
  if ignore := network.init_options.ignore:
    raise checks.ConfigError(
        f'config.{role}.init_options.ignore must be () unless init begins with '
        f'hf: or gguf:; got {ignore}, init={network.init!r}. A workdir has no '
        'fields and tensors that haikd does not know.')
  layers = network.init_layers
  if layers is not None:
    raise checks.ConfigError(
        f'config.{role}.init_layers must be None unless init begins with hf: '
        f'or gguf:; got {layers}, init={network.init!r}. All layers of a '
        'workdir or an archive are loaded.')
