"""Which model type of transformers has the options of a `llama`."""

from collections.abc import Mapping
from typing import Any

from haikd.core import checks
from haikd.interop import options as options_lib
from haikd.interop.families import llama_types
from haikd.interop.families import windows

# Options that not all types have.
_TRAITS = (
    'norms', 'norm_unit_offset', 'qk_norm', 'qkv_bias', 'output_bias',
    'mlp_bias', 'embedding_scale', 'attention_scale', 'attention_soft_cap',
    'residual_scale', 'logits_scale', 'logits_soft_cap', 'rope_fraction',
    'window_rope_base', 'unrotated_layers')


def choose(options: Mapping[str, Any]) -> str:
  """Returns the name of a model type that has a network's options.

  If several have them, it is the one whose configs have fields for most of the
  options that are given, so that a network is written as what it was read as.

  Args:
    options: those of the model that are given.

  Raises:
    ConfigError: no type has all of them together.
  """
  defaults = options_lib.complete('llama', {})
  problems = {name: _problems(model_type, {**defaults, **options}, defaults)
              for name, model_type in llama_types.TYPES.items()}
  nearest = min(problems, key=lambda name: len(problems[name]))
  if problems[nearest]:
    values = ', '.join(
        f'{name}={options[name]!r}'
        for name in (*_TRAITS, 'experts', 'window', 'window_layers',
                     'rope_scaling')
        if name in options and _plain(options[name]) != defaults[name])
    raise checks.ConfigError(
        f'options must be those of one of {", ".join(llama_types.TYPES)}; got '
        f'{values}. The nearest is {nearest}, which needs '
        f'{" and ".join(problems[nearest])}.')
  return max(
      (name for name in llama_types.TYPES if not problems[name]),
      key=lambda name: len(_fields(llama_types.TYPES[name]) & set(options)))


def _fields(model_type: llama_types.ModelType) -> set[str]:
  """Returns the options that the configs of few types have fields for."""
  names = set(model_type.numbers)
  if model_type.has_unrotated:
    names.add('unrotated_layers')
  if model_type.rotation.is_partial:
    names.add('rope_fraction')
  if model_type.rotation.window_base is not None:
    names.add('window_rope_base')
  if model_type.window.blocks != windows.NONE:
    names.add('window')
  return names


def _problems(model_type: llama_types.ModelType, options: Mapping[str, Any],
              defaults: Mapping[str, Any]) -> list[str]:
  """Returns what options a type needs in place of those that there are."""
  fields = _fields(model_type) | {
      name for names in model_type.biases.values() for name in names}
  required = {**{name: defaults[name] for name in _TRAITS
                 if name not in fields}, **model_type.traits}
  problems = [f'{name}={value!r}' for name, value in required.items()
              if _plain(options[name]) != value]
  for first, *others in model_type.biases.values():
    problems += [f'{first}={name}' for name in others
                 if options[first] != options[name]]
  if 'embedding_scale' in fields and isinstance(
      options['embedding_scale'], str):
    problems.append('a number as embedding_scale')
  form = model_type.rotation
  if form.window_base is not None and (
      (options['window'] is None) != (options['window_rope_base'] is None)):
    problems.append('a window_rope_base if there is a window')
  scaling = options['rope_scaling']
  if scaling is not None and scaling['kind'] not in form.kinds:
    problems.append(f'rope_scaling of kind {" or ".join(form.kinds)}')
  if (model_type.experts is None) != (options['experts'] is None):
    problems.append('no experts' if model_type.experts is None else 'experts')
  elif model_type.experts and not (
      model_type.experts.normalise or options['normalise_experts']):
    problems.append('normalise_experts=True')
  if not windows.fits(model_type.window, options):
    problems.append('no window' if model_type.window.blocks == windows.NONE
                    else 'one window for all blocks')
  if model_type.width_is_of_heads and options['width'] % options['heads']:
    problems.append('a width that heads divides')
  return problems


def _plain(value):
  return tuple(value) if isinstance(value, list) else value
