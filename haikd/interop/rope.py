"""What the fields of a config say of rotations, and how they are written."""

from collections.abc import Mapping
import math
from typing import Any, Optional

from haikd.core import checks
from haikd.interop import fields as fields_lib

_BASE = 10000.0  # Where none is written.
_LENGTH = 'original_max_position_embeddings'

# The numbers of each kind, as the models call them and as configs do: those
# that have to be there, and those that need not.
_NEEDED = dict(
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


def read(fields: fields_lib.Fields) -> dict[str, Any]:
  """Takes the fields of rotations and returns the options they stand for.

  Older configs have `rope_theta` and `rope_scaling`, newer ones
  `rope_parameters` in place of both.

  Args:
    fields: of `config.json`.

  Returns:
    `rope_base` and `rope_scaling`.

  Raises:
    DataError: a kind or number that is not supported.
  """
  # The length that it was trained for in the end limits nothing by itself.
  fields.ignore(('max_position_embeddings',))
  length = fields.take(_LENGTH, None, kind=int)
  base = fields.take('rope_theta', None, kind=float)
  fields.expect('partial_rotary_factor', 1.0)
  # Where both are written, transformers takes the older one too.
  older = fields.take('rope_scaling', None, kind=dict)
  newer = fields.take('rope_parameters', None, kind=dict)
  values = fields_lib.Fields(
      f'rope_scaling of {fields.path}', older or newer or {})
  old_kind = values.take('type', None, kind=str)
  kind = values.take('rope_type', None, kind=str) or old_kind or 'default'
  base = values.take('rope_theta', None, kind=float) or base or _BASE
  values.expect('partial_rotary_factor', 1.0)
  if kind == 'default':
    scaling = None
  elif kind in _NEEDED:
    scaling = dict(kind=kind)
    for name, theirs in _NEEDED[kind].items():
      scaling[name] = _tuple(values.take(theirs))
    for name, theirs in _OPTIONAL[kind].items():
      value = values.take(theirs, None)
      if value is not None:
        scaling[name] = _tuple(value)
    if kind != 'linear':
      _complete(fields, values, length, scaling)
  else:
    raise checks.DataError(
        f'interop.read: the kind of {values.path} must be one of '
        f'{", ".join(_NEEDED)}; got {kind!r}, which is not supported.')
  values.ignore((_LENGTH,))  # Others go by no such length.
  values.done()
  return dict(rope_base=base, rope_scaling=scaling)


def write(base: float, scaling: Optional[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the fields that say what options say of rotations.

  Args:
    base: the option `rope_base`.
    scaling: the option `rope_scaling`.

  Returns:
    Fields as older versions have them, which newer ones read too.
  """
  if scaling is None:
    return dict(rope_theta=base)
  kind = scaling['kind']
  written = dict(rope_type=kind)
  for name, theirs in {**_NEEDED[kind], **_OPTIONAL[kind]}.items():
    value = scaling.get(name)
    if value is not None:
      written[theirs] = list(value) if isinstance(value, tuple) else value
  values = dict(rope_theta=base, rope_scaling=written)
  # Kinds that go by a length go by the one that they make longer.
  if kind == 'dynamic':
    values['max_position_embeddings'] = scaling['original_length']
  elif kind != 'linear':
    values['max_position_embeddings'] = int(
        scaling['original_length'] * scaling['factor'])
  return values


def _complete(fields, values, length, scaling):
  """Adds the numbers of a scaling that follow from others."""
  kind = scaling['kind']
  trained = fields.take('max_position_embeddings', kind=int)
  if kind == 'dynamic':
    scaling['original_length'] = trained
    return
  # Where both are written, transformers takes the one outside.
  original = length or scaling.get('original_length') or trained
  scaling['original_length'] = original
  scaling.setdefault('factor', max(trained / original, 1.0))
  if kind == 'yarn':
    above = values.take('mscale', None)
    below = values.take('mscale_all_dim', None)
    if above and below:
      log = 0.1 * math.log(scaling['factor'])
      scaling.setdefault(
          'attention_factor', (above * log + 1) / (below * log + 1))


def _tuple(value):
  return tuple(value) if isinstance(value, list) else value
