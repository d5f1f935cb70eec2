"""Tensors that no parameter needs: repetitions, buffers, and other heads.

A tensor that contradicts what the network computes with is refused: whoever
saved it computed something else. A head that is left out is named.
"""

from collections.abc import Callable, Collection, Mapping
import fnmatch
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.core import notes
from haikd.interop import fields as fields_lib
from haikd.interop import rules as rules_lib
from haikd.interop import tensors

_BLOCK = 2**20  # Numbers that are compared at once.
# Frequencies are compared this closely; they may be stored in bfloat16.
_TOLERANCE = 0.01
_MASKED = -1e3  # A score up to this makes an attention weight of 0.


def surplus(unused: Collection[str], rules: rules_lib.Tensors,
            ignore: fields_lib.Ignore) -> list[str]:
  """Returns the tensors that nobody has an explanation for.

  Args:
    unused: names of tensors that no parameter uses.
    rules: of the network.
    ignore: the tensors that the user takes for harmless.
  """
  # All of them are asked for, so that `ignore` knows which names were needed.
  harmful = [name for name in sorted(unused) if not ignore.names(name)]
  return [name for name in harmful if name not in rules.copies and not any(
      fnmatch.fnmatchcase(name, glob) for glob in rules.ignored)]


def check(init: str, reader: tensors.TensorReader, unused: Collection[str],
          rules: rules_lib.Tensors, options: Mapping[str, Any], *,
          ignore: fields_lib.Ignore, options_field: str) -> None:
  """Refuses tensors that contradict those that are used; names other ones.

  Args:
    init: the weights, for messages.
    reader: of the tensors.
    unused: names of tensors that no parameter uses.
    rules: of the network.
    options: of the network.
    ignore: the tensors that are not compared.
    options_field: the config field of the options, for messages.

  Raises:
    DataError: a tensor contradicts the network.
  """
  others = []
  for name in sorted(unused):
    if ignore.names(name):
      continue
    original = rules.copies.get(name)
    if original in reader.shapes:
      if not _are_equal(reader, name, original):
        raise _contradiction(init, name, original, options, ignore,
                             options_field)
      continue
    agrees = _agrees(reader, name, options)
    if agrees is None:
      others.append(name)
    elif not agrees:
      raise checks.DataError(
          f'{init}: {name} must hold what follows from the config; got other '
          'numbers, so the network was saved with another config. Correct '
          f'config.json; or set {ignore.setting([name])} to follow the config, '
          'as transformers does.')
  if others:
    notes.say(f'{init}: {_shortened(others)} are not used.')


def _contradiction(init, name, original, options, ignore, options_field):
  """Returns the error of a tensor that should repeat another and does not."""
  remedy = f'Set {ignore.setting([name])} to use {original} alone.'
  if options.get('tied'):
    remedy = (
        f'Set {options_field}.tied=False to use both, as transformers 5 does, '
        f'or {ignore.setting([name])} to use {original} alone, as earlier '
        'releases do.')
  return checks.DataError(
      f'{init}: {name} must be equal to {original}, since the config says that '
      f'they are tied; got other numbers. {remedy}')


def _are_equal(reader, first, second):
  """Returns whether two tensors hold the same numbers, read in blocks."""
  if reader.shapes[first].shape != reader.shapes[second].shape:
    return False
  x, y = (reader.read(name, np.dtype(np.float32)).reshape(-1)
          for name in (first, second))
  for start in range(0, len(x), _BLOCK):
    part = slice(start, start + _BLOCK)
    if not np.array_equal(np.asarray(x[part], np.float32),
                          np.asarray(y[part], np.float32)):
      return False
  return True


def _agrees(reader: tensors.TensorReader, name: str,
            options: Mapping[str, Any]) -> Optional[bool]:
  """Returns whether a buffer holds what it must; None if it is no buffer."""
  last, shape = name.rpartition('.')[2], reader.shapes[name].shape
  scaling = options.get('rope_scaling')
  compare: Callable[[np.ndarray], Any]
  if last == 'position_ids':
    compare = lambda x: (x == np.arange(shape[-1])).all()
  elif last == 'token_type_ids':
    compare = lambda x: not x.any()
  elif name.endswith('.attn.bias'):  # The causal mask of GPT-2.
    compare = lambda x: (x == np.tri(shape[-1])).all()
  elif name.endswith('.attn.masked_bias'):  # The score of what it masks.
    compare = lambda x: (x <= _MASKED).all()
  elif last == 'inv_freq' and 'rope_base' in options and (
      scaling is None or scaling['kind'] in ('linear', 'dynamic')):
    rates = options['rope_base']**-(np.arange(shape[-1]) / shape[-1])
    compare = lambda x: np.allclose(x, rates, rtol=_TOLERANCE, atol=0)
  else:
    return None
  return bool(compare(_read(reader, name)))


def _read(reader, name):
  """Returns a small tensor in float32."""
  dtype = np.dtype(np.float32)
  return np.asarray(reader.read(name, dtype), dtype)


def _shortened(names):
  """Returns names with one star for what differs by its end only."""
  stems = dict.fromkeys(f'{name.rpartition(".")[0]}.*' for name in names)
  return checks.abbreviate(list(stems), limit=4)
