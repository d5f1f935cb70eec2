"""How an aligner is called, on one tap or on several."""

from collections.abc import Callable, Mapping
import contextlib
from typing import Any, Optional, Union

import haiku as hk

from haikd.core import base
from haikd.core import checks
from haikd.core import entries
from haikd.network import network


def build(aligner: entries.AlignerEntry, on: Union[str, tuple[str, ...]],
          options: Mapping[str, Any]) -> Callable:
  """Returns an aligner as a Haiku function.

  Args:
    aligner: the registered aligner.
    on: what a loss compares, one tap or several.
    options: of the aligner.

  Returns:
    A function of `(gather, student, teacher, mask)`, the first as for
    `network.Network.apply`, that returns a Pair; for an aligner of all layers,
    of tuples with an entry a layer, which returns their Pairs.
  """

  def one(kind, student, teacher, mask):
    return aligner.function(student, teacher, mask=mask, on=kind, **options)

  def align(gather, student, teacher, mask):
    with gathering(gather):
      if isinstance(on, str):
        return one(on, student, teacher, mask)
      pairs = {}
      for kind in on:
        with hk.experimental.name_scope(kind):
          pairs[kind] = one(kind, student[kind], teacher[kind], mask)
      return together(pairs)

  return align


def gathering(
    gather: Optional[Callable]) -> contextlib.AbstractContextManager[Any]:
  """Returns a context in which parameters are gathered where they are used."""
  return (network.gathered(gather, dtype=None) if gather else
          contextlib.nullcontext())


def together(pairs: Mapping[str, base.Pair]) -> base.Pair:
  """Returns the pairs of several taps as one, with dicts for its sides.

  Args:
    pairs: `{tap: pair}`.

  Raises:
    ConfigError: masks of different shapes.
  """
  masks = {kind: pair.mask.shape for kind, pair in pairs.items()}
  if len(set(masks.values())) > 1:
    raise checks.ConfigError(
        'the taps of one loss must share a mask; got masks of shapes '
        f'{masks}. Register a loss for each.')
  first = next(iter(pairs.values()))
  teacher = None if first.teacher is None else {
      kind: pair.teacher for kind, pair in pairs.items()}
  return base.Pair({kind: pair.student for kind, pair in pairs.items()},
                   teacher, first.mask)
