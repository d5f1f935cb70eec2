"""The fields of a config on rotary position embeddings (RoPE)."""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple, Optional

from haikd.core import checks
from haikd.interop import fields as fields_lib

_LENGTH = 'original_max_position_embeddings'
_LISTS = ('short_factor', 'long_factor')

# {kind of scaling: {name of a number in haikd's models: name in a config}};
# first the numbers that a config must have, then those that it may have.
_REQUIRED = dict(
    linear=dict(factor='factor'),
    dynamic=dict(factor='factor'),
    yarn={},
    llama3=dict(
        factor='factor',
        low_freq_factor='low_freq_factor',
        high_freq_factor='high_freq_factor'),
    longrope=dict(short_factor='short_factor', long_factor='long_factor'))
_OPTIONAL = dict(
    linear={},
    dynamic={},
    yarn=dict(
        factor='factor',
        original_length=_LENGTH,
        beta_fast='beta_fast',
        beta_slow='beta_slow',
        truncate='truncate',
        attention_factor='attention_factor'),
    llama3=dict(original_length=_LENGTH),
    longrope=dict(
        factor='factor',
        original_length=_LENGTH,
        attention_factor='attention_factor'))


class Format(NamedTuple):
  """How the configs of a model type describe RoPE.

  Attributes:
    base: of a config without one.
    window_base: the base in blocks with a window, of a config without one; None
      if no config has one.
    length: before scaling, of a config without one; None for the final training
      length. A type with a default has the field outside of the scaling.
    is_partial: whether configs say which part of a head is rotated.
    kinds: of scaling.
  """

  base: float = 10000.0
  window_base: Optional[float] = None
  length: Optional[int] = None
  is_partial: bool = False
  kinds: tuple[str, ...] = tuple(_REQUIRED)


def read(fields: fields_lib.Fields, form: Format) -> dict[str, Any]:
  """Takes the fields of RoPE and returns the options that they mean.

  Older configs have `rope_theta` and `rope_scaling`, newer ones
  `rope_parameters` in place of both.

  Args:
    fields: of `config.json`.
    form: of the model type.

  Returns:
    `rope_base` and `rope_scaling`, and where the type has them
    `window_rope_base` and `rope_fraction`.

  Raises:
    DataError: a kind or number that is not supported.
  """
  # The final training length alone limits nothing.
  fields.ignore(('max_position_embeddings',))
  length = fields.take(_LENGTH, None, kind=int)
  base = fields.take('rope_theta', None, kind=float)
  options = {}
  # Where a config has both, transformers too takes the older one.
  older = fields.take('rope_scaling', None, kind=dict)
  newer = fields.take('rope_parameters', None, kind=dict)
  prefix = 'rope_parameters.'
  if form.window_base is not None:
    nested = fields.nested(newer or {}, prefix)
    newer = nested.take('full_attention', None, kind=dict)
    options['window_rope_base'] = _read_window_base(
        fields, nested) or form.window_base
    nested.done()
    prefix += 'full_attention.'
  values = fields.nested(
      older or newer or {}, prefix if older is None else 'rope_scaling.')
  base = values.take('rope_theta', None, kind=float) or base or form.base
  if form.is_partial:
    fraction = fields.take('partial_rotary_factor', 1.0, kind=float)
    options['rope_fraction'] = values.take(
        'partial_rotary_factor', fraction, kind=float)
  else:
    for each in (fields, values):
      each.expect('partial_rotary_factor', 1.0)
  scaling = _read_scaling(values, form.kinds)
  if scaling is not None and scaling['kind'] != 'linear':
    _complete(fields, values, length or form.length, scaling)
  values.ignore((_LENGTH,))  # The other kinds do not use that length.
  values.done()
  return dict(options, rope_base=base, rope_scaling=scaling)


def write(options: Mapping[str, Any], form: Format) -> dict[str, Any]:
  """Returns the fields that mean the same as the options of RoPE.

  Args:
    options: of the model.
    form: of the model type.

  Returns:
    The fields of older versions of transformers, which newer ones read too.
  """
  values = dict(rope_theta=options['rope_base'])
  if form.window_base is not None:
    values['rope_local_base_freq'] = options['window_rope_base']
  if form.is_partial:
    values['partial_rotary_factor'] = options['rope_fraction']
  if options['rope_scaling'] is not None:
    values.update(_write_scaling(options['rope_scaling']))
    if form.length is not None:
      values[_LENGTH] = values['rope_scaling'].pop(_LENGTH)
  return values


def _write_scaling(scaling):
  kind = scaling['kind']
  written = dict(rope_type=kind)
  for ours, theirs in {**_REQUIRED[kind], **_OPTIONAL[kind]}.items():
    value = scaling.get(ours)
    if value is not None:
      written[theirs] = list(value) if isinstance(value, tuple) else value
  values = dict(rope_scaling=written)
  # transformers takes max_position_embeddings as the length before scaling for
  # `dynamic`, and after scaling for all other kinds but `linear`.
  if kind == 'dynamic':
    values['max_position_embeddings'] = scaling['original_length']
  elif kind != 'linear':
    values['max_position_embeddings'] = round(
        scaling['original_length'] * scaling['factor'])
  return values


def _read_window_base(fields, nested) -> Optional[float]:
  """Takes the base of the rotations in blocks with a window; None for none."""
  base = fields.take('rope_local_base_freq', None, kind=float)
  name = 'sliding_attention'
  window = fields.nested(
      nested.take(name, None, kind=dict) or {}, f'rope_parameters.{name}.')
  window.expect('rope_type', 'default')
  base = window.take('rope_theta', None, kind=float) or base
  window.done()
  return base


def _read_scaling(values, kinds) -> Optional[dict[str, Any]]:
  """Takes the kind of a scaling and its numbers; None without a scaling."""
  older = values.take('type', None, kind=str)
  newer = values.take('rope_type', None, kind=str)
  kind = newer or older or 'default'
  kind = 'longrope' if kind == 'su' else kind  # Its name in early configs.
  if kind == 'default':
    return None
  if kind not in kinds:
    raise checks.DataError(
        f'{values.title("rope_type" if newer else "type")} must be one of '
        f'{", ".join(kinds)}; got {kind!r}, which haikd does not support.')
  scaling = dict(kind=kind)
  for ours, theirs in _REQUIRED[kind].items():
    scaling[ours] = _take(values, theirs)
  for ours, theirs in _OPTIONAL[kind].items():
    if (value := _take(values, theirs, None)) is not None:
      scaling[ours] = value
  return scaling


def _complete(fields, values, length, scaling):
  """Adds the numbers of a scaling that follow from other fields."""
  kind = scaling['kind']
  trained = fields.take('max_position_embeddings', kind=int)
  if kind == 'dynamic':
    scaling['original_length'] = trained
    return
  # Where a config has both, transformers takes the one outside the scaling.
  original = length or scaling.get('original_length') or trained
  scaling['original_length'] = original
  scaling.setdefault('factor', max(trained / original, 1.0))
  if kind == 'yarn':
    above = values.take('mscale', None, kind=float)
    below = values.take('mscale_all_dim', None, kind=float)
    if above and below:
      log = 0.1 * math.log(scaling['factor'])
      scaling.setdefault(
          'attention_factor', (above * log + 1) / (below * log + 1))


def _take(values, name, *default):
  """Takes a number above 0, or for some fields a list of them or a bool."""
  kind = {'truncate': bool, _LENGTH: int}.get(name, float)
  if name not in _LISTS:
    return values.take(name, *default, kind=kind)
  numbers = values.take(name, *default, kind=list)
  if not all(checks.is_number(x) and x > 0 for x in numbers):
    raise checks.DataError(
        f'{values.title(name)} must be a list of numbers above 0; got '
        f'{numbers}. Fetch the model again.')
  return tuple(numbers)
