"""Pretrained weights, brought onto devices tensor by tensor."""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import math
import time
from typing import Any, Optional

import jax
import numpy as np

from haikd.core import base
from haikd.interop import matching
from haikd.interop import placing
from haikd.interop import pretrained_source as pretrained_source_lib

_PATIENCE = 2  # Seconds after which a bar is shown.


def load(field: str,
         init: str,
         expected: base.Variables,
         *,
         options: Mapping[str, Any],
         layers: Optional[Sequence[int]] = None,
         kept_ids: Optional[np.ndarray] = None) -> base.Variables:
  """Returns a network with pretrained weights.

  Of each tensor a device gets what its shard needs, a block at a time, so that
  the host never holds a network. What is wrong with any of them is found before
  the first is read. A network may be smaller than the weights in the numbers of
  its blocks, features, hidden units, whole heads and positions, of which it
  takes the first, and in its tokens.

  Args:
    field: of the config that names the weights, for messages.
    init: as for `interop.describe`.
    expected: the network's parameters and state as `jax.ShapeDtypeStruct`s,
      with the dtypes and shardings that they are to have.
    options: of the model.
    layers: which block of the weights each block takes; None for the same, of
      which there must be as many.
    kept_ids: `[V]` integers, which tokens of the weights the network has, in
      the order of its own; None for all.

  Returns:
    Parameters and the state, which such a network has none in.

  Raises:
    ConfigError: the network is no part of the one that was trained.
    DataError: the weights cannot be read, or are missing, left over or of
      another shape.
  """
  match = _match(field, init, expected, options, layers, kept_ids)
  leaves = jax.tree.leaves(expected.params)
  total = sum(math.prod(leaf.shape) for leaf in leaves)
  with _Progress(field, total) as progress:

    def open_part(found, number, leaf):
      view = match.open_part(found, number, leaf.dtype)
      progress.advance(math.prod(leaf.shape) // len(found.tensors))
      return view

    params = {}
    for (module, name), found in match.matches.items():
      leaf = expected.params[module][name]
      parts = [functools.partial(open_part, found, number, leaf)
               for number in range(len(found.tensors))]
      params.setdefault(module, {})[name] = placing.fill(
          leaf, parts, stacked=found.address.stacked)
  return base.Variables(params, expected.state)


def check(field: str,
          init: str,
          expected: base.Variables,
          *,
          options: Mapping[str, Any],
          layers: Optional[Sequence[int]] = None,
          kept_ids: Optional[np.ndarray] = None) -> None:
  """Raises what `load` would before it reads a tensor; takes what it does.

  Raises:
    ConfigError: as `load`.
    DataError: as `load`.
  """
  _match(field, init, expected, options, layers, kept_ids)


def _match(field, init, expected, options, layers, kept_ids):
  """Returns what each parameter takes, all of it checked."""
  return matching.Matching(
      field, init, pretrained_source_lib.open_source(init), expected.params,
      options=options, layers=layers,
      kept_ids=None if kept_ids is None else np.asarray(kept_ids))


class _Progress(contextlib.AbstractContextManager):
  """A bar on standard error, where it is a terminal and loading takes long."""

  def __init__(self, title, total):
    self._title, self._total = title, total
    self._start, self._done, self._bar = time.monotonic(), 0, None

  def advance(self, count):
    """Says that so many more numbers are being read."""
    self._done += count
    if self._bar is None:
      if time.monotonic() - self._start < _PATIENCE or jax.process_index():
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
