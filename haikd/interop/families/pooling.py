"""How a folder of sentence-transformers pools a text to one vector."""

from collections.abc import Mapping
from typing import Any

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.storage import files
from haikd.storage import paths

_MODULES = 'modules.json'
_TRANSFORMER, _POOLING, _NORMALIZE = 'Transformer', 'Pooling', 'Normalize'
_MODES = dict(
    mean='mean',
    cls='token',
    pooling_mode_mean_tokens='mean',
    pooling_mode_cls_token='token')


def read_pooling(folder: paths.Path) -> dict[str, Any]:
  """Returns the options `pool` and `normalise` of `models.bert`.

  Args:
    folder: of the network. Without `modules.json` in it the vector is the
      mean, of length 1.

  Returns:
    Options.

  Raises:
    DataError: the modules are not a transformer, a pooling and perhaps a norm,
      in this order; the pooling is neither the mean nor the first token; or a
      file cannot be read.
  """
  folder = paths.as_path(folder)
  path = folder / _MODULES
  if not paths.exists(path):
    return dict(pool='mean', normalise=True)
  modules = files.read_json(path)
  if not isinstance(modules, list) or not all(
      isinstance(module, dict) and {'type', 'path'} <= set(module)
      for module in modules):
    raise checks.DataError(
        f'{path} must be a list of modules, each with type and path; got '
        f'{modules!r}. Fetch the model again.')
  kinds = [str(module['type']).rpartition('.')[2] for module in modules]
  legal = [_TRANSFORMER, _POOLING, _NORMALIZE]
  if kinds not in (legal[:2], legal):
    raise checks.DataError(
        f'{path}: the modules must be {_TRANSFORMER}, {_POOLING} and perhaps '
        f'{_NORMALIZE}; got {", ".join(kinds) or "none"}, which haikd does not '
        'support.')
  path = folder / modules[1]['path'] / 'config.json'
  config = fields_lib.read_object(path)
  modes = config.get('pooling_mode')
  if modes is None:
    modes = [name for name, value in config.items()
             if name.startswith('pooling_mode_') and value]
  modes = [modes] if isinstance(modes, str) else list(modes)
  if len(modes) != 1 or modes[0] not in _MODES:
    raise checks.DataError(
        f'{path}: pooling_mode must be mean or cls; got '
        f'{", ".join(modes) or "none"}, which haikd does not support.')
  return dict(pool=_MODES[modes[0]], normalise=_NORMALIZE in kinds)


def write_pooling(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what sentence-transformers needs beside the network.

  Args:
    options: of `models.bert`.

  Returns:
    `{path in the folder: content of that JSON file}`; empty for a network
    that returns no vectors.
  """
  options = options_lib.complete('bert', options)
  if options['head'] != 'embedding':
    return {}
  kinds = [_TRANSFORMER, _POOLING]
  folders = ['', f'1_{_POOLING}']
  if options['normalise']:
    kinds.append(_NORMALIZE)
    folders.append(f'2_{_NORMALIZE}')
  modules = [
      dict(idx=i, name=str(i), path=folder,
           type=f'sentence_transformers.models.{kind}')
      for i, (kind, folder) in enumerate(zip(kinds, folders))
  ]
  pooling = dict(
      word_embedding_dimension=options['width'],
      pooling_mode_cls_token=options['pool'] == 'token',
      pooling_mode_mean_tokens=options['pool'] == 'mean',
      pooling_mode_max_tokens=False,
      pooling_mode_mean_sqrt_len_tokens=False)
  length = options['positions'] - options['position_offset']
  return {
      _MODULES: modules,
      f'{folders[1]}/config.json': pooling,
      'sentence_bert_config.json': dict(
          max_seq_length=length, do_lower_case=False),
  }
