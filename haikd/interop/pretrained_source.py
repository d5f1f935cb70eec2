"""Opens pretrained weights: a folder of Hugging Face, or a GGUF file."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
import contextlib
import functools
import importlib
import os
import pathlib
from types import ModuleType
from typing import Any, NamedTuple, Optional

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import folders
from haikd.interop import gguf
from haikd.interop import gguf_llama
from haikd.interop import images
from haikd.interop import options as options_lib
from haikd.interop import rules
from haikd.interop import tensors
from haikd.interop.families import pooling
from haikd.storage import paths

FAMILIES = ('bert', 'gpt2', 'llama', 'modernbert', 't5_encoder', 'vit')

_FOLDER, _GGUF = 'hf:', 'gguf:'
_TOKENIZERS = ('tokenizer.json', 'tokenizer.model', 'vocab.txt', 'vocab.json')

Options = Mapping[str, Any]


class Pretrained(NamedTuple):
  """The network that weights were trained for.

  Attributes:
    model: the registered model.
    options: those of its options that the weights decide.
    vocabulary: the number of its token embeddings; None for images.
    tokenizer: its tokenizer, as `haikd.data.text.tokenizer.load` takes it; None
      if it has none.
    classes: their names in the order of their ids; None if they are unknown, or
      the network does not classify.
    scale: the mean and the standard deviation of each channel, by which images
      in [0, 1] are normalised; None if they are unknown, or it takes no images.
  """

  model: str
  options: dict[str, Any]
  vocabulary: Optional[int]
  tokenizer: Optional[str]
  classes: Optional[tuple[str, ...]] = None
  scale: Optional[images.ChannelStatistics] = None


class PretrainedSource(NamedTuple):
  """Opened pretrained weights.

  Attributes:
    pretrained: the network that they were trained for.
    reader: of the tensors.
    tensors: `options -> rules.Tensors`.
    ignore: the tensors that may be unused.
  """

  pretrained: Pretrained
  reader: tensors.TensorReader
  tensors: Callable[[Options], rules.Tensors]
  ignore: fields_lib.Ignore


def is_pretrained(init: Optional[str]) -> bool:
  """Returns whether an `init` names pretrained weights, not a workdir."""
  return str(init or '').startswith((_FOLDER, _GGUF))


def with_prefix(init: str) -> Optional[str]:
  """Returns what to write for a path that lacks its prefix; None otherwise.

  Args:
    init: a path, which may be the workdir of a run.
  """
  path = pathlib.Path(os.path.expanduser(init))
  if path.suffix == '.gguf':
    return f'{_GGUF}{init}'
  config = path / folders.CONFIG
  with contextlib.suppress(checks.DataError):
    if os.path.isfile(config) and (
        'model_type' in fields_lib.read_object(config)):
      return f'{_FOLDER}{init}'
  return None


def describe(init: str, *, ignore: Iterable[str] = (),
             field: str = '') -> Pretrained:
  """Returns the network that weights were trained for.

  Only configs and headers are read.

  Args:
    init: `hf:<folder>`, which holds `config.json` and safetensors, or
      `gguf:<file>`. A `~` means the home folder.
    ignore: unknown fields of the config that do not change what the network
      computes, and globs over tensors that it does not need.
    field: the config field that names the weights, for messages.

  Raises:
    ConfigError: it is something else.
    DataError: the weights are missing or broken, or their kind or one of their
      fields is not supported.
  """
  return open_source(init, ignore=ignore, field=field).pretrained


def open_source(init: str, *, ignore: Iterable[str] = (),
                field: str = '') -> PretrainedSource:
  """Opens pretrained weights.

  Its arguments and errors are those of `describe`.
  """
  named = field or 'init'
  path = path_of(init, named)
  ignored = fields_lib.Ignore(
      f'{field}_options.ignore' if field else 'ignore', ignore)
  open_it = _open_gguf if init.startswith(_GGUF) else _open_folder
  return open_it(path, ignored, named)


def path_of(init: str, field: str = 'init') -> pathlib.Path:
  """Returns the local folder or file of pretrained weights.

  Args:
    init: as for `describe`.
    field: the config field that names them, for messages.

  Raises:
    ConfigError: it is something else.
  """
  if not is_pretrained(init):
    raise checks.ConfigError(
        f'{field} must be {_FOLDER}<folder> or {_GGUF}<file>; got {init!r}.')
  _, _, location = init.partition(':')
  if paths.is_remote(location):
    raise checks.ConfigError(
        f'{field} must name local files, since weights are mapped into memory; '
        f'got the bucket {location!r}. Copy them to this machine.')
  return pathlib.Path(os.path.expanduser(location))


def families() -> list[ModuleType]:
  """Returns the modules of all families."""
  return [importlib.import_module(f'haikd.interop.families.{name}')
          for name in FAMILIES]


def family_of(model: str) -> ModuleType:
  """Returns the family of a registered model.

  Args:
    model: its name.

  Raises:
    ConfigError: the model has no family, so no other library has it.
  """
  known = {family.MODEL: family for family in families()}
  if model not in known:
    raise checks.ConfigError(
        f'model must be one that transformers has; got {model!r}. '
        f'{checks.suggest(model, known)}')
  return known[model]


def has_family(model: str) -> bool:
  """Returns whether transformers has a registered model."""
  return model in {family.MODEL for family in families()}


def read_config(fields: fields_lib.Fields) -> tuple[ModuleType, dict[str, Any]]:
  """Returns the family and the options of a network.

  Args:
    fields: of `config.json`.

  Raises:
    DataError: the family, a field or a value is not supported.
  """
  model_type = fields.take('model_type', None)
  known = {name: family for family in families() for name in family.MODEL_TYPES}
  if not isinstance(model_type, str) or model_type not in known:
    raise checks.DataError(
        f'{fields.title("model_type")} must be one that haikd supports; got '
        f'{model_type!r}. {checks.suggest(str(model_type), known)}')
  family = known[model_type]
  folders.check_not_coded(fields)
  options = family.read_config(fields)
  fields.done()
  return family, options


def _open_folder(folder, ignore, field):
  folders.check(folder, field)
  path = folder / folders.CONFIG
  content = fields_lib.read_object(path)
  fields = fields_lib.Fields(str(path), content, ignore=ignore)
  classes = scale = None
  with _reading(path):
    family, options = read_config(fields)
    takes_images = 'image_size' in options
    if takes_images or options.get('head') == 'classification':
      classes = options_lib.read_names(fields)
  if takes_images:
    with _reading(folder / images.FILE):
      scale = images.read_scale(folder, options['channels'])
  reader: tensors.TensorReader = tensors.Safetensors(folder)
  if pooling.gives_vectors(family.MODEL, options):
    with _reading(folder / 'modules.json'):
      options.update(pooling.read_pooling(folder))
      reader = pooling.read_tensors(folder, reader)
  rules_of = functools.partial(_rules, family, reader)
  has_tokenizer = any((folder / name).exists() for name in _TOKENIZERS)
  return PretrainedSource(
      Pretrained(family.MODEL, options, _vocabulary(rules_of(options), reader),
                 str(folder) if has_tokenizer else None, classes, scale),
      reader, rules_of, ignore)


def _open_gguf(path, ignore, field):
  if not os.path.isfile(path):
    raise checks.DataError(
        f'{field} must name a file; got {path}. Give the GGUF file itself.')
  reader = gguf.Gguf(path)
  with _reading(path):
    options = gguf_llama.read_metadata(reader, ignore)
  architecture = reader.metadata['general.architecture']
  rules_of = lambda options: gguf_llama.tensors(
      architecture, options, reader.shapes)
  return PretrainedSource(
      Pretrained(gguf_llama.MODEL, options,
                 _vocabulary(rules_of(options), reader), f'{_GGUF}{path}'),
      reader, rules_of, ignore)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
  """Turns any error that a broken file causes into one that names the file."""
  try:
    yield
  except (checks.ConfigError, checks.DataError):
    raise
  except Exception as err:  # Wrong types and values cause errors of any kind.
    raise checks.DataError(
        f'{path} must have values as networks of its kind have them; got a '
        f'file that cannot be read ({checks.describe(err)}). Fetch the model '
        'again.') from err


def _rules(family: ModuleType, reader: tensors.TensorReader,
           options: Options) -> rules.Tensors:
  names: Collection[str] = reader.shapes
  return family.tensors(options, names)


def _vocabulary(network_rules, reader):
  """Returns the number of token embeddings; None if there are no tokens."""
  for rule in network_rules.rules:
    if rule.vocabulary is not None and rule.tensor in reader.shapes:
      return reader.shapes[rule.tensor].shape[0]
  return None
