"""Layers that are paired by what they hold: `layers='adaptive'`.

Before its first step a student is run beside its teacher on a sample of the
training split. Each of its layers is paired with the layer of the teacher that
it resembles, for the whole run; a run that goes on reads the pairs from its
checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from haikd.align import layers as layers_lib
from haikd.align import similarity
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.objective import terms as terms_lib
from haikd.processes import distributed
from haikd.run import calibration
from haikd.run import trainees
from haikd.run import trainer
from haikd.storage import checkpoint
from haikd.storage import files
from haikd.storage import paths

FILE = 'layers.json'  # In the workdir: what was found, for the report.


class Matched(NamedTuple):
  """What was found for a term.

  Attributes:
    similarity: `[S, L]`, the linear CKA of the layers of student and teacher.
    pairs: `((student layer, (teacher layer,)), …)`.
  """

  similarity: np.ndarray
  pairs: layers_lib.LayerPairs


def settle(student: trainees.Trainee, frozen: base.Variables,
           workdir: paths.Path) -> trainees.Trainee:
  """Returns the student with its adaptive layers paired.

  Args:
    student: from `trainees.build`.
    frozen: the teacher, on the mesh.
    workdir: the workdir of the run.
  """
  terms = [term for term in student.program.objective.terms
           if layers_lib.adaptive(term.layers)]
  if not terms:
    return student
  if checkpoint.has_checkpoint(workdir):
    saved = checkpoint.metadata(workdir)['layers']
    pairs = {term.name: saved[term.name] for term in terms}
  else:
    state = trainer.start(
        student.config, student.program, student.data, frozen)
    found = build_match(student, terms)(
        base.Variables(state.params.student, state.net_state), frozen)
    del state
    for term in terms:
      _say(term, found[term.name])
    pairs = {name: matched.pairs for name, matched in found.items()}
    pairs = distributed.first(lambda: pairs)  # All processes must agree.
    if jax.process_index() == 0:
      files.write_json(paths.as_path(workdir) / FILE, {
          name: dict(similarity=matched.similarity.tolist(),
                     pairs=matched.pairs) for name, matched in found.items()})
  config = student.config.copy_and_resolve_references()
  for term in terms:
    _select(config, term, tuple((i, j) for i, (j,) in pairs[term.name]))
  built = trainees.build(
      config, student.program.mesh, shared_data=student.data,
      folder=student.folder, title=student.title)
  # The config stays the one that owns the workdir.
  return built._replace(config=student.config)


def build_match(
    student: trainees.Trainee, terms: Sequence[terms_lib.Term]
) -> Callable[[base.Variables, base.Variables], dict[str, Matched]]:
  """Returns a function that compares layers on a sample of the training split.

  Args:
    student: from `trainees.build`.
    terms: whose layers are to be paired.

  Returns:
    `(student, teacher) -> {term: what was found}`, given the variables of both
    on the mesh. If a loss has several taps, the similarity is the mean of
    theirs.
  """
  kinds = sorted({kind for term in terms for kind in term.entry.kinds})
  states_of = calibration.build_states(
      student.config, student.program, student.data, kinds)

  def match(network, frozen):
    states = states_of(network, frozen)
    alike = {
        kind: similarity.cka(*(
            [similarity.gram(rows) for rows in states[kind][role]]
            for role in calibration.ROLES))
        for kind in kinds}
    found = {}
    for term in terms:
      selection = layers_lib.adaptive(term.layers)
      assert selection is not None
      values = np.mean([alike[kind] for kind in term.entry.kinds], axis=0)
      _check(term, values)
      found[term.name] = Matched(
          values, similarity.assign(values, selection.monotone))
    return found

  return match


def _check(term, values):
  """Refuses layers of which nothing can be told."""
  unknown = np.isnan(values)
  if unknown.all(axis=0).any() or unknown.all(axis=1).any():
    raise checks.ConfigError(
        f'{term.layers_field} must be of layers whose states differ between '
        'examples, of which there are 4 or more, to be adaptive; got no '
        "similarity for some layer. Set it to 'uniform'.")


def _select(config, term, selection):
  """Sets the layers of a term, of `config.losses` or of the standard ones."""
  if term.name in config.losses:
    with config.losses.unlocked(), config.losses.ignore_type():
      config.losses[term.name].layers = selection
  else:
    name = term.layers_field.rpartition('.')[2]
    with config.distillation.ignore_type():  # A name becomes a tuple.
      config.distillation[name] = selection


def _say(term, matched):
  pairs = ', '.join(f'{i} from {j} ({matched.similarity[i, j]:.2f})'
                    for i, (j,) in matched.pairs)
  notes.say(f'layers of {term.name} learn from those that they resemble, by '
            f'linear CKA: {pairs} ({term.layers_field}).')


def read(workdir: paths.Path) -> Mapping[str, Any]:
  """Returns the content of `FILE`; empty where there is none."""
  path = paths.as_path(workdir) / FILE
  return files.read_json(path) if paths.exists(path) else {}
