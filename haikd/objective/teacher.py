"""The teacher at work: it is run no further than some term looks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Optional

from haikd.core import base
from haikd.network import network as network_lib
from haikd.objective import pairs as pairs_lib
from haikd.objective import terms as terms_lib
from haikd.objective import trim_scans


def infer(teacher: Optional[network_lib.Network],
          frozen: Optional[base.Variables], batch: base.Batch,
          terms: Iterable[terms_lib.Term],
          layers: Mapping[str, pairs_lib.Layers],
          gather: Optional[Callable]) -> Optional[network_lib.NetworkOutput]:
  """Runs the teacher, for what terms compare with.

  Where no term looks at its logits, its layers above the last one that some
  term looks at are not run.

  Args:
    teacher: the network, or None.
    frozen: its parameters and state, or None.
    batch: the batch.
    terms: of the objective.
    layers: `{term: ((student layer, teacher layers), …)}` of those that are not
      on logits.
    gather: as for `network.Network.apply`.

  Returns:
    Its output, with None in place of what no term looks at; None altogether if
    none compares with a teacher.
  """
  terms = [term for term in terms if term.needs_teacher]
  if not terms:
    return None
  looked_at = {
      (term.entry.on, j) for term in terms
      for _, group in layers.get(term.name, ()) for j in group
  }
  on_logits = any(term.entry.on == terms_lib.LOGITS for term in terms)

  def run(frozen, batch):
    output = teacher.infer(frozen, batch, gather)
    taps = {
        kind: tuple(x if (kind, j) in looked_at else None
                    for j, x in enumerate(values))
        for kind, values in output.taps.items()
    }
    return network_lib.NetworkOutput(output.logits if on_logits else None, taps)

  if on_logits:
    return run(frozen, batch)
  return trim_scans.run_needed(run, frozen, batch)
