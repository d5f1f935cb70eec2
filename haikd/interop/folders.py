"""What a folder of weights must hold, and what is in folders that do not."""

import os
import pathlib
import re

from haikd.core import checks
from haikd.interop import fields as fields_lib

CONFIG = 'config.json'

_ADAPTER = 'adapter_config.json'
_ADAPTER_WEIGHTS = 'adapter_model.*'

# Fields that say that the tensors are coded: of transformers, MLX and sparseml.
_CODED = ('quantization_config', 'quantization', 'compression_config')

_HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+')  # As in 'Qwen/Qwen2.5-0.5B'.


def check(folder: pathlib.Path, field: str) -> None:
  """Refuses a path that is no folder with a config and the weights it is for.

  Args:
    folder: the path that `field` names.
    field: 'init', or the config field, for messages.

  Raises:
    DataError: it is something else; the message says what, and what to do.
  """
  # Unlike `pathlib`, `os.path` also answers for a name that is too long.
  if not os.path.isdir(folder):
    remedy = f'Give the one that holds {CONFIG} and the weights'
    if os.path.exists(folder):
      remedy = f'Give the folder it is in, {folder.parent}'
    elif _HUB_NAME.fullmatch(str(folder)):
      remedy = (f'haikd fetches nothing: run `hf download {folder} --local-dir '
                f'{folder.name}`, and set it to hf:{folder.name}')
    raise checks.DataError(
        f'{field} must name a folder; got {folder}. {remedy}.')
  is_adapter = (folder / _ADAPTER).exists()
  if is_adapter and not (folder / CONFIG).exists():
    raise checks.DataError(
        f'{field} must name a complete model; got {folder}, which holds an '
        f'adapter ({_ADAPTER}){_base_of(folder)}. {merging(folder)}')
  if not (folder / CONFIG).exists():
    inside = sorted(path.parent for path in folder.glob(f'*/{CONFIG}'))
    remedy = (f'Did you mean {inside[0]}?' if inside else
              f'Give the one that holds {CONFIG} and the weights.')
    raise checks.DataError(
        f'{field} must name a folder with {CONFIG}; got {folder}. {remedy}')
  if is_adapter and any(folder.glob(_ADAPTER_WEIGHTS)):
    raise checks.DataError(
        f'{field} must name one model; got {folder}, which holds weights and '
        f'an adapter ({_ADAPTER}){_base_of(folder)}. If the weights are merged,'
        f' move the files adapter_* elsewhere; if not: {merging(folder)}')


def check_not_coded(fields: fields_lib.Fields) -> None:
  """Refuses a config that says its tensors are quantised.

  Args:
    fields: of `config.json`.

  Raises:
    DataError: it says so.
  """
  for name in _CODED:
    value = fields.take(name, None)
    if value and not fields.is_ignored(name):
      method = value.get('quant_method') if isinstance(value, dict) else None
      raise checks.DataError(
          f'{fields.title(name)} must be missing, since haikd reads plain '
          f'floating-point tensors; got {method or value!r}. Fetch the model '
          'that was quantised. If the tensors are plain in spite of the field, '
          f'set {fields.ignoring(name)}.')


def merging(folder: pathlib.Path) -> str:
  """Returns the remedy for an adapter that is not merged."""
  return (
      'Merge it where peft is installed: AutoPeftModelForCausalLM of peft, '
      f'.from_pretrained({str(folder)!r}).merge_and_unload()'
      ".save_pretrained('merged'), and set init to hf:merged.")


def _base_of(folder):
  """Returns the model that an adapter belongs to, for messages."""
  try:
    name = fields_lib.read_object(folder / _ADAPTER).get(
        'base_model_name_or_path')
  except checks.DataError:
    return ''
  return f' of {name}' if name else ''
