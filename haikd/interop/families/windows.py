"""The fields of a config on attention windows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

from haikd.core import checks
from haikd.interop import fields as fields_lib

_FULL, _SLIDING = 'full_attention', 'sliding_attention'

# Which blocks have the window if a config has no `layer_types`: none, all,
# those from a number on, those without rotations, the first of each two, or all
# but the last of each few. With the first two no config may say otherwise.
NONE, ALL = 'none', 'all'
LAST, UNROTATED, ALTERNATING, PATTERN = (
    'last', 'unrotated', 'alternating', 'pattern')


class Format(NamedTuple):
  """How the configs of a model type describe windows.

  Attributes:
    blocks: which blocks have the window, as above.
    size: the window of a config without one; None for no window.
    has_switch: whether the window counts only with `use_sliding_window`.
  """

  blocks: str = NONE
  size: Optional[int] = None
  has_switch: bool = False


def read(fields: fields_lib.Fields, form: Format, depth: int,
         unrotated: Sequence[int]) -> dict[str, Any]:
  """Takes the fields of windows and returns the options that they mean.

  Args:
    fields: of `config.json`.
    form: of the model type.
    depth: the number of blocks.
    unrotated: the blocks without rotations.

  Returns:
    `window` and `window_layers`, where they differ from the model's defaults.

  Raises:
    DataError: windows that are not supported.
  """
  if form.blocks == NONE:
    fields.expect('layer_types', [_FULL] * depth)
    return {}
  window = fields.take('sliding_window', form.size, kind=int, null=True)
  if form.has_switch and not fields.take(
      'use_sliding_window', False, kind=bool):
    window = None
  if form.blocks == ALL:
    fields.expect('layer_types', [_SLIDING if window else _FULL] * depth)
    return dict(window=window)
  chosen = _default_blocks(fields, form, depth, unrotated)
  types = fields.take('layer_types', None, kind=list)
  if types is None:
    types = [_SLIDING if window and i in chosen else _FULL
             for i in range(depth)]
  if len(types) != depth or set(types) - {_FULL, _SLIDING} or (
      window is None and _SLIDING in types):
    raise checks.DataError(
        f'{fields.title("layer_types")} must be {_FULL} or {_SLIDING} for each '
        f'of {depth} layers, and {_FULL} for all without a window; got '
        f'{types}, which haikd does not support.')
  chosen = tuple(i for i, name in enumerate(types) if name == _SLIDING)
  if not chosen:
    return {}
  return dict(
      window=window, window_layers=None if len(chosen) == depth else chosen)


def write(form: Format, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields that mean the same as the options of windows.

  Args:
    form: of the model type, for which `fits` is true.
    options: of the model.
  """
  if form.blocks == NONE:
    return {}
  values = dict(sliding_window=options['window'])
  if form.has_switch:
    values['use_sliding_window'] = options['window'] is not None
  if form.blocks != ALL:
    values['layer_types'] = [
        _SLIDING if is_chosen else _FULL for is_chosen in _has_window(options)]
  return values


def fits(form: Format, options: Mapping[str, Any]) -> bool:
  """Returns whether configs of a model type can say which blocks have windows.

  Args:
    form: of the model type.
    options: of the model.
  """
  has_window = set(_has_window(options))
  if form.blocks == NONE:
    return has_window == {False}
  return form.blocks != ALL or len(has_window) == 1


def _default_blocks(fields, form, depth, unrotated):
  """Takes the fields that choose blocks in a config without `layer_types`."""
  if form.blocks == LAST:
    return range(fields.take('max_window_layers', 28), depth)
  if form.blocks == UNROTATED:
    return unrotated
  if form.blocks == ALTERNATING:
    return range(0, depth, 2)
  every = fields.take('sliding_window_pattern', 6, kind=int)
  return [i for i in range(depth) if (i + 1) % every]


def _has_window(options):
  """Returns whether each block has a window."""
  chosen = options['window_layers']
  return [options['window'] is not None and (chosen is None or i in chosen)
          for i in range(options['depth'])]
