"""Layers that are paired by what they hold: `layers='adaptive'`.

Before its first step a student is run beside its teacher on a sample of the
training split. Each of its layers is paired with the layer of the teacher that
it resembles, for the whole run; a run that goes on reads the pairs from its
checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import jax
import numpy as np

from haikd import align
from haikd import config as config_lib
from haikd.align import layers as layers_lib
from haikd.align import similarity
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.objective import terms as terms_lib
from haikd.processes import distributed
from haikd.run import calibration
from haikd.run import first_state
from haikd.run import teachers
from haikd.run import trainees
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


class _Open(NamedTuple):
  """A term of a stage whose layers are adaptive.

  Attributes:
    stage: the number of the stage.
    term: the term.
    waits: whether its layers are paired where the stage begins, and not before
      the first step.
  """

  stage: int
  term: terms_lib.Term
  waits: bool


def check(student: trainees.Trainee) -> None:
  """Refuses layers that cannot be paired anew where a stage begins.

  Args:
    student: from `trainees.build`.

  Raises:
    ConfigError: what a term learns is for the layers that it began with.
  """
  program = student.program
  for number, term, waits in open_terms(program):
    if not waits:
      continue
    objective = program.stages[number].objective
    learned = program.abstract_state.params.align.get(term.name, {})
    teacher = objective.outputs[1]
    assert teacher is not None, 'there is one to resemble'
    taps = teacher.taps
    shapes = {kind: {jax.tree.leaves(x)[0].shape[1:] for x in taps[kind]}
              for kind in term.entry.kinds}
    # Only pooling, and what takes any width, can do with other shapes.
    is_bound = any(name.isdigit() for name in learned) or (
        term.aligner.function is align.none and not term.entry.any_width)
    is_free = not is_bound or all(len(x) == 1 for x in shapes.values())
    if term.aligner.calibrate or not is_free:
      raise checks.ConfigError(
          f"{term.layers_field} must not be adaptive with at='stage' where "
          "what is learned, or compared, depends on the teacher's layers: with "
          f"init='pca', or where their shapes differ; got {shapes}. Set "
          "at='start'.")


def open_terms(program: Any) -> list[_Open]:
  """Returns the terms that have adaptive layers to pair, by stage.

  Args:
    program: a `program.Program`, of the student.
  """
  return [
      _Open(number, term,
            selection.at == layers_lib.AT_STAGE and stage.start > 0)
      for number, stage in enumerate(program.stages)
      for term in stage.objective.terms
      if (selection := layers_lib.adaptive(term.layers)) and
      term.needs_teacher and term.name in stage.objective.layers]


def settle(student: trainees.Trainee, teacher: Optional[teachers.Teacher],
           workdir: paths.Path) -> trainees.Trainee:
  """Returns the student with its adaptive layers paired.

  Those that are paired where a stage begins are paired by its `settle`, which
  training calls there.

  Args:
    student: from `trainees.build`.
    teacher: of the run; None if that has a checkpoint.
    workdir: the workdir of the run.
  """
  is_open = open_terms(student.program)
  if not is_open:
    return student
  pairs: dict[tuple[int, str], layers_lib.LayerPairs] = {}

  def pair(chosen, network):
    """Pairs the layers of terms as they are in a network."""
    found = _match(student, chosen, network, teacher)
    agreed = distributed.first(lambda: [  # All processes must agree.
        (number, name, matched.pairs)
        for (number, name), matched in found.items()])
    pairs.update({(number, name): layers for number, name, layers in agreed})
    _keep(student, chosen, found, workdir)

  def rebuild():
    """Returns the program of the pairs that are known."""
    return _rebuild(student, is_open, pairs)

  def settle_stage(number, state):
    chosen = [x for x in is_open if x.waits and x.stage == number]
    if not chosen:
      return None
    pair(chosen, base.Variables(state.params.student, state.net_state))
    return rebuild().program

  if checkpoint.has_checkpoint(workdir):
    saved = checkpoint.metadata(workdir)['layers']
    last = student.program.stage_of(checkpoint.steps_taken(workdir))
    pairs.update({(x.stage, x.term.name): saved[x.stage][x.term.name]
                  for x in is_open if not x.waits or x.stage <= last})
  elif chosen := [x for x in is_open if not x.waits]:
    assert teacher is not None, 'nothing was found before'
    state = first_state.start(
        student.config, student.program, student.data, teacher)
    pair(chosen, base.Variables(state.params.student, state.net_state))
    del state
  # The config stays the one that owns the workdir.
  return rebuild()._replace(config=student.config, settle=settle_stage)


def _match(student, chosen, network, teacher):
  """Returns `{(stage, term): Matched}`, computed once where it is the same."""
  found: dict[tuple[int, str], Matched] = {}
  known: dict[tuple[Any, ...], Matched] = {}
  for number, stage in enumerate(student.program.stages):
    # A term of one name may compare other taps, or teachers, in another stage.
    keys = {x.term.name: (x.term.name, x.term.entry.kinds, _monotone(x.term),
                          number if stage.taught_by else None)
            for x in chosen if x.stage == number}
    new = [x.term for x in chosen
           if x.stage == number and keys[x.term.name] not in known]
    if new:
      program = student.program.of_stage(number)
      matched = build_match(student._replace(program=program), new)(
          network, teacher.of_stage(number))
      known.update({keys[name]: x for name, x in matched.items()})
    found.update({(number, name): known[key] for name, key in keys.items()})
  return found


def _keep(student, chosen, found, workdir):
  """Says what was found, and writes it for the report."""
  said, entries = set(), {}
  for number, term, waits in chosen:
    matched = found[number, term.name]
    if id(matched) in said:
      continue
    said.add(id(matched))
    _say(term, matched)
    title = term.name
    if waits or title in entries:
      title += f', stage {student.program.stages[number].name}'
    entries[title] = dict(
        similarity=matched.similarity.tolist(), pairs=matched.pairs)
  if jax.process_index() == 0:
    before = read(workdir) if any(x.waits for x in chosen) else {}
    files.write_json(paths.as_path(workdir) / FILE, {**before, **entries})


def _rebuild(student, is_open, pairs):
  """Returns the student with the pairs that are known in its config."""
  config = student.config.copy_and_resolve_references()
  for number, term, _ in is_open:
    if (number, term.name) in pairs:
      _select(config, student.program.stages[number].name, term, tuple(
          (i, j) for i, (j,) in pairs[number, term.name]))
  return trainees.build(
      config, student.program.mesh, shared_data=student.data,
      folder=student.folder, title=student.title)


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
      values = np.mean([alike[kind] for kind in term.entry.kinds], axis=0)
      _check(term, values)
      found[term.name] = Matched(
          values, similarity.assign(values, _monotone(term)))
    return found

  return match


def _monotone(term):
  selection = layers_lib.adaptive(term.layers)
  assert selection is not None
  return selection.monotone


def _check(term, values):
  """Refuses layers of which nothing can be told."""
  unknown = np.isnan(values)
  if unknown.all(axis=0).any() or unknown.all(axis=1).any():
    raise checks.ConfigError(
        f'{term.layers_field} must be of layers whose states differ between '
        'examples, of which there are 4 or more, to be adaptive; got no '
        "similarity for some layer. Set it to 'uniform'.")


def _select(config, stage, term, selection):
  """Sets the layers of a term, in a stage if that has a name.

  Args:
    config: to be changed.
    stage: the name of the stage, or ''.
    term: of `config.losses`, or a standard one.
    selection: pairs of layers.
  """
  group, name = 'losses', term.name
  if term.layers_field.startswith('config.distillation.'):
    group, name = 'distillation', term.layers_field.rpartition('.')[2]
  with config.unlocked(), config.ignore_type():
    fields = config
    for key in ('stages', stage) if stage else ():
      fields = fields[key]
    for key in (group, name) if group == 'losses' else (group,):
      if key not in fields:
        fields[key] = config_lib.ConfigDict()
      fields = fields[key]
    key = 'layers' if group == 'losses' else name
    if key in fields:
      del fields[key]  # A name becomes a tuple.
    fields[key] = selection


def _say(term, matched):
  pairs = ', '.join(f'{i} from {j} ({matched.similarity[i, j]:.2f})'
                    for i, (j,) in matched.pairs)
  notes.say(f'layers of {term.name} learn from those that they resemble, by '
            f'linear CKA: {pairs} ({term.layers_field}).')


def read(workdir: paths.Path) -> Mapping[str, Any]:
  """Returns the content of `FILE`; empty where there is none."""
  path = paths.as_path(workdir) / FILE
  return files.read_json(path) if paths.exists(path) else {}
