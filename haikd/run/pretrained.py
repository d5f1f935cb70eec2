"""Networks that start from weights: a workdir, or a model of another library.

`config.teacher.init` and `config.student.init` name them: the workdir of a run,
`hf:<folder>` as Hugging Face's transformers writes it, or `gguf:<file>`. The
latter two say themselves what the network is like.
"""

from typing import Any, Optional

import numpy as np

from haikd import config as config_lib
from haikd import interop
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.data import pipeline
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.storage import checkpoint

_NETWORKS = ('teacher', 'student')


def resolve(config: config_lib.ConfigDict) -> config_lib.ConfigDict:
  """Fills in what pretrained networks say of themselves.

  Of a network whose `init` is `hf:` or `gguf:`, the model and its options are
  read from there; options in the config come on top, so that a student may be
  shallower or narrower than what it starts from. A data set that takes a
  tokenizer, and is given none, gets that of the teacher or else the student,
  and at least as many classes as the network has; likewise the names of
  classes, in the network's order, and how images are scaled.

  Args:
    config: a validated config, its plugins imported.

  Returns:
    A config of its own. Resolving it again changes nothing.

  Raises:
    ConfigError: the config names another model, or `init_layers` cannot be.
    DataError: what `init` names cannot be read, or is not supported.
  """
  config = config.copy_and_resolve_references()
  tokenizers = {}
  for title in _NETWORKS:
    _check_layers(title, config[title])
    if interop.is_pretrained(config[title].init):
      tokenizers[title] = _resolve_network(title, config)
  _check_tokenizers(tokenizers)
  return config


def with_vocabulary(config: config_lib.ConfigDict,
                    text: Any) -> config_lib.ConfigDict:
  """Gives encoders a vocabulary that holds that of the data.

  Decoders have as many classes as the data; an encoder's classes are others
  than its tokens, and a token beyond its table would be taken for the last.

  Args:
    config: what `resolve` returns.
    text: of the data, a `data.source.TextInfo` or None.

  Returns:
    The config, or a changed copy.

  Raises:
    ConfigError: an encoder has fewer tokens than the data.
  """
  if text is None:
    return config
  config = config.copy_and_resolve_references()
  for title in _NETWORKS:
    function = registry.models[config[title].model].function
    if 'vocabulary' not in checks.option_names(function):
      continue
    options = config[title].options
    size = options.get('vocabulary')
    if text.kept_ids is not None or size is None:
      with config.unlocked():
        options.vocabulary = text.size
    elif size < text.size:
      raise checks.ConfigError(
          f'pretrained.with_vocabulary: config.{title}.options.vocabulary must '
          f'be no smaller than that of the data; got {size}, and '
          f'{text.size} of {text.tokenizer}. Give the data the tokenizer of '
          'the network, or the network another vocabulary.')
  return config


def check(config: config_lib.ConfigDict, title: str, expected: base.Variables,
          data: pipeline.Data) -> None:
  """Refuses weights that a network cannot start from; as `load`."""
  field, network = f'config.{title}.init', config[title]
  if not interop.is_pretrained(network.init):
    checkpoint.load_like(field, network.init, expected)
    return
  interop.check(
      field,
      network.init,
      expected,
      options=network.options.to_dict(),
      layers=network.init_layers,
      kept_ids=_kept_ids(data))


def load(config: config_lib.ConfigDict, title: str, expected: base.Variables,
         data: pipeline.Data) -> base.Variables:
  """Reads the weights that a network starts from.

  Args:
    config: what `resolve` returns.
    title: 'teacher' or 'student'.
    expected: its parameters and state as `jax.ShapeDtypeStruct`s, with the
      dtypes and shardings that they are to have.
    data: whose vocabulary may be a part of that of the weights.

  Returns:
    Parameters and state.

  Raises:
    DataError: they are not there, cannot be read, or are of another network.
  """
  field, network = f'config.{title}.init', config[title]
  if not interop.is_pretrained(network.init):
    return checkpoint.load_like(field, network.init, expected)
  return interop.load(
      field,
      network.init,
      expected,
      options=network.options.to_dict(),
      layers=network.init_layers,
      kept_ids=_kept_ids(data))


def is_there(init: Optional[str]) -> bool:
  """Returns whether weights are named and can be read, once `resolve` has.

  A run that has saved something does not need those that it started from.
  """
  return bool(init) and (interop.is_pretrained(init) or
                         checkpoint.has_checkpoint(init))


def seconds(init: str) -> float:
  """Returns how long weights were trained for; 0 where nobody says."""
  if interop.is_pretrained(init):
    return 0.0
  return checkpoint.metadata(init)['seconds']


def _resolve_network(title, config):
  network = config[title]
  found = interop.describe(network.init)
  if network.model not in (found.model, config_lib.network().model):
    raise checks.ConfigError(
        f'pretrained.resolve: config.{title}.model must be left out, or be '
        f'that of {network.init}; got {network.model!r} where it is '
        f'{found.model!r}. Leave it out.')
  options = dict(found.options)
  if network.init_layers is not None:
    options['depth'] = len(network.init_layers)
  options.update(network.options.to_dict())
  _resolve_data(config, found, options)
  network.model = found.model
  with config.unlocked():
    network.options = options
  return found.tokenizer


def _check_tokenizers(tokenizers):
  """Refuses networks in which one number stands for two tokens."""
  known = {title: path for title, path in tokenizers.items() if path}
  if len(set(known.values())) < 2:
    return
  digests = {tokenizer_lib.load(path).digest for path in known.values()}
  if len(digests) > 1:
    raise checks.ConfigError(
        'pretrained.resolve: teacher and student must have one tokenizer, '
        'since their logits are compared token by token; got '
        f'{known["teacher"]} and {known["student"]}, which differ. Choose a '
        "student of the teacher's own family.")


def _resolve_data(config, found, options):
  """Gives the data a tokenizer and classes, and takes these from options."""
  plain = config_lib.base().data
  as_it_was = (config.data.mean, config.data.std) == (plain.mean, plain.std)
  if found.scale is not None and as_it_was:
    with config.ignore_type():  # Numbers become tuples.
      config.data.mean, config.data.std = found.scale
  name = config.data.name
  if name not in registry.datasets.names():
    return
  takes = checks.option_names(registry.datasets[name].function)
  known = {}
  if 'tokenizer' in takes and found.tokenizer:
    known['tokenizer'] = found.tokenizer
  if 'classes' in takes and found.classes:
    known['classes'] = found.classes
  if 'vocabulary' in takes and 'num_classes' in options:
    # How many are left of a pruned vocabulary, the data knows.
    classes = options.pop('num_classes')
    if not config.data.options.get('prune'):
      known['vocabulary'] = classes
  with config.unlocked():
    config.data.options = {**known, **config.data.options.to_dict()}


def _check_layers(title, network):
  layers = network.init_layers
  if layers is not None and not interop.is_pretrained(network.init):
    raise checks.ConfigError(
        f'pretrained.resolve: config.{title}.init_layers must be None unless '
        f'init begins with hf: or gguf:; got {layers}, init={network.init!r}. '
        'A workdir is loaded as it is.')


def _kept_ids(data) -> Optional[np.ndarray]:
  return None if data.text is None else data.text.kept_ids
