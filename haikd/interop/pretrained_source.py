"""Where pretrained weights come from: a folder of Hugging Face, or GGUF."""

from collections.abc import Callable, Collection, Iterator, Mapping
import contextlib
import functools
import importlib
import os
import pathlib
from types import ModuleType
from typing import Any, NamedTuple, Optional

from haikd.core import checks
from haikd.interop import fields
from haikd.interop import gguf
from haikd.interop import gguf_llama
from haikd.interop import images
from haikd.interop import options as options_lib
from haikd.interop import rules
from haikd.interop import tensors
from haikd.storage import files
from haikd.storage import paths

FAMILIES = ('bert', 'gpt2', 'llama', 'vit')

_FOLDER, _GGUF = 'hf:', 'gguf:'
_TOKENIZERS = ('tokenizer.json', 'tokenizer.model', 'vocab.txt', 'vocab.json')

Options = Mapping[str, Any]


class Pretrained(NamedTuple):
  """What a network is that weights were made for.

  Attributes:
    model: the registered model.
    options: its options, all that the weights decide.
    vocabulary: the number of tokens that it has a vector for; None for images.
    tokenizer: where its tokenizer is, as `haikd.data.text.tokenizer.load` takes
      it; None if there is none.
    classes: their names in the order of their numbers; None if nobody says, or
      the network does not classify.
    scale: the mean and the standard deviation of each channel, by which images
      from 0 to 1 are scaled; None if nobody says, or it takes no images.
  """

  model: str
  options: dict[str, Any]
  vocabulary: Optional[int]
  tokenizer: Optional[str]
  classes: Optional[tuple[str, ...]] = None
  scale: Optional[images.Scale] = None


class Source(NamedTuple):
  """Pretrained weights, opened.

  Attributes:
    pretrained: what they were made for.
    reader: the tensors.
    tensors: `options -> rules.Tensors`.
  """

  pretrained: Pretrained
  reader: tensors.TensorReader
  tensors: Callable[[Options], rules.Tensors]


def is_pretrained(init: Optional[str]) -> bool:
  """Returns whether an `init` names weights of others, not a workdir."""
  return str(init or '').startswith((_FOLDER, _GGUF))


def describe(init: str) -> Pretrained:
  """Returns what weights were made for, from configs and headers alone.

  Args:
    init: `hf:<folder>`, which holds `config.json` and safetensors, or
      `gguf:<file>`. A `~` stands for the home folder.

  Raises:
    ConfigError: it is something else.
    DataError: nothing is there, it is broken, or of a kind or with a field that
      is not supported.
  """
  return open_source(init).pretrained


def open_source(init: str) -> Source:
  """Opens pretrained weights; takes and raises what `describe` does."""
  if not is_pretrained(init):
    raise checks.ConfigError(
        f'interop.describe: init must be {_FOLDER}<folder> or {_GGUF}<file>; '
        f'got init={init!r}.')
  kind, _, place = init.partition(':')
  if paths.is_remote(place):
    raise checks.ConfigError(
        'interop.describe: init must be local, since its weights are mapped '
        f'into memory; got init={init!r}. Copy it to this machine.')
  path = pathlib.Path(os.path.expanduser(place))
  return _open_gguf(path) if f'{kind}:' == _GGUF else _open_folder(path)


def families() -> list[ModuleType]:
  """Returns the modules of all families."""
  return [importlib.import_module(f'haikd.interop.families.{name}')
          for name in FAMILIES]


def family_of(model: str) -> ModuleType:
  """Returns the family of a registered model.

  Args:
    model: its name.

  Raises:
    ConfigError: there is none, so that no one else reads its weights.
  """
  known = {family.MODEL: family for family in families()}
  if model not in known:
    raise checks.ConfigError(
        'interop.export: model must be one that transformers has; got '
        f'model={model!r}. {checks.suggest(model, known)}')
  return known[model]


def _open_folder(folder):
  if not folder.is_dir():
    raise checks.DataError(
        f'interop.describe: init must name a folder; got {folder}. Give the '
        'one that holds config.json and the weights.')
  content = files.read_json(folder / 'config.json')
  if not isinstance(content, dict):
    raise checks.DataError(
        f'interop.describe: {folder / "config.json"} must hold a JSON object; '
        f'got {type(content).__name__}. Fetch the model again.')
  kind = content.get('model_type')
  known = {name: family for family in families() for name in family.MODEL_TYPES}
  if not isinstance(kind, str) or kind not in known:
    raise checks.DataError(
        f'interop.describe: model_type of {folder} must be one that is '
        f'supported; got {kind!r}. {checks.suggest(str(kind), known)}')
  family = known[kind]
  found = fields.Fields(str(folder / 'config.json'), content)
  classes = scale = None
  with _reading(folder / 'config.json'):
    options = family.read_config(found)
    found.done()
    is_of_images = 'image_size' in options
    if is_of_images or options.get('head') == 'classification':
      classes = options_lib.read_names(found)
  if is_of_images:
    with _reading(folder / images.FILE):
      scale = images.read_scale(folder, options['channels'])
  if options.get('head') == 'embedding':
    from haikd.interop.families import pooling
    with _reading(folder / 'modules.json'):
      options.update(pooling.read_pooling(folder))
  reader = tensors.Safetensors(folder)
  rules_of = functools.partial(_rules, family, reader)
  has_tokenizer = any((folder / name).exists() for name in _TOKENIZERS)
  return Source(
      Pretrained(family.MODEL, options, _vocabulary(rules_of(options), reader),
                 str(folder) if has_tokenizer else None, classes, scale),
      reader, rules_of)


def _open_gguf(path):
  if not path.is_file():
    raise checks.DataError(
        f'interop.describe: init must name a file; got {path}.')
  reader = gguf.Gguf(path)
  with _reading(path):
    options = gguf_llama.read_metadata(reader)
  kind = reader.metadata['general.architecture']
  rules_of = lambda options: gguf_llama.tensors(kind, options, reader.shapes)
  return Source(
      Pretrained(gguf_llama.MODEL, options,
                 _vocabulary(rules_of(options), reader), f'{_GGUF}{path}'),
      reader, rules_of)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
  """Makes a DataError that names a file of whatever a broken one leads to."""
  try:
    yield
  except (checks.ConfigError, checks.DataError):
    raise
  except Exception as err:  # Whatever wrong types and values lead to.
    raise checks.DataError(
        f'interop.describe: {path} must be as networks of its kind have it; '
        f'got one that cannot be understood ({checks.describe(err)}). Fetch '
        'the model again.') from err


def _rules(family: ModuleType, reader: tensors.TensorReader,
           options: Options) -> rules.Tensors:
  names: Collection[str] = reader.shapes
  return family.tensors(options, names)


def _vocabulary(found, reader):
  """Returns the number of rows of the table of tokens, if there is one."""
  for rule in found.rules:
    if rule.vocabulary is not None and rule.tensor in reader.shapes:
      return reader.shapes[rule.tensor].shape[0]
  return None
