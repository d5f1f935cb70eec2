"""How a folder of sentence-transformers makes one vector of a text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from haikd.core import checks
from haikd.core import notes
from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop import rules as rules_lib
from haikd.interop import tensors
from haikd.storage import files
from haikd.storage import paths

MODELS = ('bert', 'modernbert', 't5_encoder')  # Those that return vectors.

_MODULES = 'modules.json'
_PROMPTS = 'config_sentence_transformers.json'
_TOKENIZING = 'sentence_bert_config.json'
_TRANSFORMER, _POOLING, _NORMALIZE, _DENSE = (
    'Transformer', 'Pooling', 'Normalize', 'Dense')

# {mode: the option `pool`}; older files have a flag for each mode.
_MODES = dict(
    mean='mean',
    cls='token',
    lasttoken='last_token',
    max='max',
    mean_sqrt_len_tokens='mean_sqrt')
_FLAGS = dict(
    pooling_mode_mean_tokens='mean',
    pooling_mode_cls_token='cls',
    pooling_mode_lasttoken='lasttoken',
    pooling_mode_max_tokens='max',
    pooling_mode_mean_sqrt_len_tokens='mean_sqrt_len_tokens')

# {class of PyTorch: activation of the models}
_ACTIVATIONS = {
    'torch.nn.modules.linear.Identity': None,
    'torch.nn.modules.activation.Tanh': 'tanh',
    'torch.nn.modules.activation.ReLU': 'relu',
    'torch.nn.modules.activation.GELU': 'gelu',
    'torch.nn.modules.activation.SiLU': 'silu',
}


def gives_vectors(model: str, options: Mapping[str, Any]) -> bool:
  """Returns whether a network pools texts to vectors.

  Args:
    model: the registered model.
    options: of the model.
  """
  return model in MODELS and options.get('head', 'embedding') == 'embedding'


def read_pooling(folder: paths.Path) -> dict[str, Any]:
  """Returns the options `pool`, `dense` and `normalise`.

  Args:
    folder: of the network. Without `modules.json` in it the vector is the
      mean, of length 1.

  Returns:
    Options.

  Raises:
    DataError: the modules do not begin with a transformer and a pooling, or
      others follow than dense layers and norms; the pooling or a dense layer
      is of a kind that is not supported; a prompt precedes all texts; or a file
      cannot be read.
  """
  folder = paths.as_path(folder)
  if not paths.exists(folder / _MODULES):
    notes.say(f'{folder} has no {_MODULES}: the vector of a text is the mean '
              'of its positions, of length 1, unless options.pool and '
              'options.normalise of the network say otherwise.')
    return dict(pool='mean', dense=(), normalise=True)
  modules = _read_modules(folder)
  pooling = folder / modules[1][1] / 'config.json'
  config = fields_lib.read_object(pooling)
  _check_texts(folder, modules[0][1])
  dense: list[dict[str, Any]] = []
  normalise = False
  for kind, path in modules[2:]:
    config_path = folder / path / 'config.json'
    if kind == _DENSE:
      dense.append(_read_dense(config_path) | dict(normalise=normalise))
    elif paths.exists(config_path):
      _check_names(fields_lib.Fields(
          str(config_path), fields_lib.read_object(config_path)))
    normalise = kind == _NORMALIZE
  return dict(pool=_read_mode(pooling, config), dense=tuple(dense),
              normalise=normalise)


def read_tensors(folder: paths.Path,
                 reader: tensors.TensorReader) -> tensors.TensorReader:
  """Returns a reader that has the tensors of dense layers too.

  Args:
    folder: of the network.
    reader: of its other tensors.

  Raises:
    DataError: a layer has no safetensors.
  """
  folder = paths.as_path(folder)
  if not paths.exists(folder / _MODULES):
    return reader
  modules = _read_modules(folder)
  names = [name for kind, name in _layout(read_pooling(folder))
           if kind == _DENSE]
  found = [path for kind, path in modules if kind == _DENSE]
  return tensors.Joined(reader, {
      name: tensors.Safetensors(folder / path)
      for name, path in zip(names, found)})


def rules(model: str, options: Mapping[str, Any]) -> Iterator[rules_lib.Rule]:
  """Yields the rules of the dense layers.

  Args:
    model: the registered model.
    options: of the model.
  """
  options = options_lib.complete(model, options)
  names = [name for kind, name in _layout(options) if kind == _DENSE]
  for i, (name, entry) in enumerate(zip(names, options['dense'])):
    yield from rules_lib.linear(
        f'dense_{i}', f'{name}/linear', bias=entry.get('bias', True))


def write_pooling(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what sentence-transformers needs beside the network.

  Args:
    model: the registered model.
    options: of the model.

  Returns:
    `{path in the folder: content of that JSON file}`; empty for a network
    that returns no vectors.

  Raises:
    ConfigError: sentence-transformers has no such layer.
  """
  if not gives_vectors(model, options):
    return {}
  options = options_lib.complete(model, options)
  layout = _layout(options)
  contents: dict[str, Any] = {
      _MODULES: [
          dict(idx=i, name=str(i), path=path,
               type=f'sentence_transformers.models.{kind}')
          for i, (kind, path) in enumerate(layout)
      ]
  }
  dense = iter(options['dense'])
  size = options['width']
  for kind, path in layout:
    if kind == _POOLING:
      modes = {pool: mode for mode, pool in _MODES.items()}
      options_lib.check_choice('pool', options['pool'], modes)
      mode = modes[options['pool']]
      contents[f'{path}/config.json'] = dict(
          word_embedding_dimension=size,
          **{flag: name == mode for flag, name in _FLAGS.items()})
    if kind == _DENSE:
      entry = next(dense)
      contents[f'{path}/config.json'] = dict(
          in_features=size,
          out_features=entry['size'],
          bias=entry.get('bias', True),
          activation_function=_write_activation(entry.get('activation')))
      size = entry['size']
  length = None
  if 'positions' in options:
    length = options['positions'] - options['position_offset']
  contents[_TOKENIZING] = dict(max_seq_length=length, do_lower_case=False)
  return contents


def _read_modules(folder) -> list[tuple[str, str]]:
  """Returns the kind and the folder of each module, in order."""
  path = folder / _MODULES
  modules = files.read_json(path)
  if not isinstance(modules, list) or not all(
      isinstance(module, dict) and {'type', 'path'} <= set(module)
      for module in modules):
    raise checks.DataError(
        f'{path} must be a list of modules, each with type and path; got '
        f'{modules!r}. Fetch the model again.')
  kinds = [str(module['type']).rpartition('.')[2] for module in modules]
  if kinds[:2] != [_TRANSFORMER, _POOLING] or not (
      set(kinds[2:]) <= {_DENSE, _NORMALIZE}):
    raise checks.DataError(
        f'{path}: the modules must be {_TRANSFORMER}, {_POOLING} and any of '
        f'{_DENSE} and {_NORMALIZE}; got {", ".join(kinds) or "none"}, which '
        'haikd does not support.')
  return [(kind, module['path']) for kind, module in zip(kinds, modules)]


def _read_mode(path, config):
  modes = config.get('pooling_mode')
  if modes is None:
    modes = [_FLAGS.get(name, name) for name, value in config.items()
             if name.startswith('pooling_mode_') and value]
  modes = [modes] if isinstance(modes, str) else list(modes)
  if len(modes) != 1 or modes[0] not in _MODES:
    raise checks.DataError(
        f'{path}: pooling_mode must be one of {", ".join(_MODES)}; got '
        f'{", ".join(modes) or "none"}, which haikd does not support.')
  return _MODES[modes[0]]


def _read_dense(path):
  """Returns the entry of the option `dense` that a config gives."""
  fields = fields_lib.Fields(str(path), fields_lib.read_object(path))
  fields.take('in_features', kind=int)
  _check_names(fields)
  name = fields.take('activation_function', 'torch.nn.modules.activation.Tanh')
  entry = dict(
      size=fields.take('out_features', kind=int),
      bias=fields.take('bias', True, kind=bool),
      activation=_ACTIVATIONS.get(name))
  if name not in _ACTIVATIONS:
    raise checks.DataError(
        f'{fields.title("activation_function")} must be one of '
        f'{", ".join(_ACTIVATIONS)}; got {name!r}, which haikd does not '
        'support.')
  fields.done()
  return entry


def _check_names(fields):
  """Refuses a module that does not map the vector of a text."""
  for name in ('module_input_name', 'module_output_name'):
    fields.expect(name, 'sentence_embedding')


def _check_texts(folder, transformer):
  """Says, or refuses, how texts would be changed before they are tokenised."""
  path = folder / transformer / _TOKENIZING
  if paths.exists(path) and fields_lib.read_object(path).get('do_lower_case'):
    notes.say(f'{path}: do_lower_case is left out, since texts go to the '
              'tokenizer as they are. If it does not lower their case itself, '
              'lower it in the data.')
  path = folder / _PROMPTS
  config = fields_lib.read_object(path) if paths.exists(path) else {}
  prompts = {name: prompt for name, prompt in
             (config.get('prompts') or {}).items() if prompt}
  name = config.get('default_prompt_name')
  prompt = prompts.pop(name, None)
  if prompts:
    notes.say(f'{path}: no prompt is added to texts; the model has '
              f'{prompts}. Begin the texts with the one that they need.')
  if prompt:
    raise checks.DataError(
        f'{path}: default_prompt_name must be null, since haikd adds no prompt '
        f'to texts; got {name!r}. Begin the texts with {prompt!r}, and set it '
        'to null.')


def _write_activation(name):
  names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
  options_lib.check_choice('dense.activation', name, names)
  return names[name]


def _layout(options) -> Sequence[tuple[str, str]]:
  """Returns the kind and the folder of each module, in order."""
  kinds = [_TRANSFORMER, _POOLING]
  for entry in options['dense']:
    kinds += [_NORMALIZE] if entry.get('normalise') else []
    kinds.append(_DENSE)
  kinds += [_NORMALIZE] if options['normalise'] else []
  return [(kind, f'{i}_{kind}' if i else '') for i, kind in enumerate(kinds)]
