"""Loads pretrained weights onto devices, tensor by tensor."""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import functools
import math
import time
from typing import Any, Optional

import jax
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.interop import matching as matching_lib
from haikd.interop import placing
from haikd.interop import pretrained_source as pretrained_source_lib
from haikd.interop import reduction

_BAR_DELAY = 2  # Seconds of loading after which a progress bar is shown.


def load(field: str,
         init: str,
         expected: base.Variables,
         *,
         options: Mapping[str, Any],
         layers: Optional[Sequence[int]] = None,
         kept_ids: Optional[np.ndarray] = None,
         ignore: Iterable[str] = ()) -> base.Variables:
  """Returns a network with pretrained weights.

  A device gets of each tensor what its shard needs, a block at a time, so that
  the host never holds a network. All tensors are checked before the first is
  read. A network may have fewer blocks, features, hidden units, heads and
  positions than the weights, and takes the first of each; and it may have fewer
  tokens.

  Args:
    field: of the config that names the weights, for messages.
    init: as for `interop.describe`.
    expected: the network's parameters and state as `jax.ShapeDtypeStruct`s,
      with the dtypes and shardings that they are to have.
    options: of the model.
    layers: the block of the weights that each block takes; None for the block
      of the same number, if both have as many.
    kept_ids: `[V]` integers, the tokens of the weights that the network has, in
      its order; None for all.
    ignore: as for `interop.describe`.

  Returns:
    The parameters, and `expected.state`, which is empty for such a network.

  Raises:
    ConfigError: the network is no part of the one that was trained.
    DataError: the weights cannot be read, or are missing, unused, of another
      shape or not finite.
  """
  matching = _match(field, init, expected, options, layers, kept_ids, ignore)
  leaves = jax.tree.leaves(expected.params)
  total = sum(math.prod(leaf.shape) for leaf in leaves)
  with _Progress(field, total) as progress:

    def open_part(match, number, leaf):
      part = matching.open_part(match, number, leaf.dtype)
      progress.advance(math.prod(leaf.shape) // len(match.tensors))
      return part

    params: dict[str, dict[str, jax.Array]] = {}
    for (module, name), match in matching.matches.items():
      leaf = expected.params[module][name]
      parts = [functools.partial(open_part, match, number, leaf)
               for number in range(len(match.tensors))]
      try:
        filled = placing.fill(leaf, parts, stacked=match.address.stacked)
      except placing.NotFiniteError as err:
        raise _not_finite(field, init, match, err) from err
      params.setdefault(module, {})[name] = filled
  return base.Variables(params, expected.state)


def check(field: str,
          init: str,
          expected: base.Variables,
          *,
          options: Mapping[str, Any],
          layers: Optional[Sequence[int]] = None,
          kept_ids: Optional[np.ndarray] = None,
          ignore: Iterable[str] = ()) -> None:
  """Raises what `load` would raise before it reads a tensor.

  The arguments are those of `load`.

  Raises:
    ConfigError: as `load`.
    DataError: as `load`.
  """
  _match(field, init, expected, options, layers, kept_ids, ignore)


def _match(field, init, expected, options, layers, kept_ids, ignore):
  """Returns the tensors of each parameter, all of them checked."""
  source = pretrained_source_lib.open_source(init, ignore=ignore, field=field)
  return matching_lib.match(
      field, init, source, expected.params,
      options=options, layers=layers,
      kept_ids=None if kept_ids is None else np.asarray(kept_ids))


def _not_finite(field, init, match, err):
  """Returns the error of a tensor with NaN or infinity."""
  tensor = match.tensors[err.part]
  precision = reduction.sibling(field, 'precision')
  remedy = (f"Set {precision}='bfloat16' or 'float32', whose range is larger"
            if err.is_overflow else 'Fetch the model again, or an earlier '
            'checkpoint of it')
  reason = f', which {err.dtype} cannot hold' if err.is_overflow else ''
  return checks.DataError(
      f'{field} must hold finite numbers; got {init} with {err.value} in '
      f'{tensor}{reason}. {remedy}.')


class _Progress(contextlib.AbstractContextManager):
  """A progress bar on standard error, for slow loading in a terminal."""

  def __init__(self, title, total):
    self._title, self._total = title, total
    self._start, self._done, self._bar = time.monotonic(), 0, None

  def advance(self, count):
    """Adds to the count of numbers that have been or are being read."""
    self._done += count
    if self._bar is None:
      if time.monotonic() - self._start < _BAR_DELAY or jax.process_index():
        return
      self._bar = _open_bar()
      self._task = self._bar.add_task(f'reading {self._title}',
                                      total=self._total)
      self._bar.start()
    self._bar.update(self._task, completed=self._done)

  def __exit__(self, *unused):
    if self._bar is not None:
      self._bar.stop()


def _open_bar():
  import rich.console
  import rich.progress
  console = rich.console.Console(stderr=True)
  return rich.progress.Progress(
      console=console, transient=True, disable=not console.is_terminal)
