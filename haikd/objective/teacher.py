"""Runs the teacher, no further than the layers that terms use."""

from collections.abc import Callable, Iterable, Mapping
from typing import Optional

from haikd.core import base
from haikd.core import scopes
from haikd.network import network as network_lib
from haikd.objective import pairs as pairs_lib
from haikd.objective import terms as terms_lib
from haikd.objective import trim_scans


def infer(teacher: Optional[network_lib.Network],
          frozen: Optional[base.Variables], batch: base.Batch,
          terms: Iterable[terms_lib.Term],
          layers: Mapping[str, pairs_lib.Layers],
          gather: Optional[Callable]) -> Optional[network_lib.NetworkOutput]:
  """Runs the teacher for the terms that compare with it.

  If no term uses its logits, the layers above the last one that some term uses
  are not run.

  Args:
    teacher: the network, or None.
    frozen: the teacher's parameters and state, or None.
    batch: the batch.
    terms: of the objective.
    layers: `{term: ((student layer, teacher layers), …)}` of the terms that are
      not on logits.
    gather: as for `network.Network.apply`.

  Returns:
    Its output, with None in place of what no term uses; None if no term
    compares with a teacher.
  """
  terms = [term for term in terms if term.needs_teacher]
  if teacher is None or not terms:
    return None
  used_taps = {
      (kind, index) for term in terms for kind in term.entry.kinds
      for _, group in layers.get(term.name, ()) for index in group
  }
  on_logits = any(term.entry.on == terms_lib.LOGITS for term in terms)

  def run(frozen, batch):
    output = teacher.infer(frozen, batch, gather)
    taps = {
        kind: tuple(value if (kind, index) in used_taps else None
                    for index, value in enumerate(values))
        for kind, values in output.taps.items()
    }
    return network_lib.NetworkOutput(output.logits if on_logits else None, taps)

  with scopes.teacher():
    if on_logits:
      return run(frozen, batch)
    return trim_scans.run_needed(run, frozen, batch)
