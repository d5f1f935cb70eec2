"""Layers that are paired by what they hold: `layers='adaptive'`.

Before its first step a student is run beside its teacher on a sample of the
training split. Each of its layers is paired with the layer of the teacher that
it resembles, for the whole run; a run that goes on reads the pairs from its
checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haikd.align import layers as layers_lib
from haikd.align import similarity
from haikd.core import base
from haikd.core import masking
from haikd.core import notes
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import sample
from haikd.network import network as network_lib
from haikd.objective import pairs as pairs_lib
from haikd.objective import terms as terms_lib
from haikd.run import trainees
from haikd.run import trainer
from haikd.storage import checkpoint
from haikd.storage import files
from haikd.storage import paths

FILE = 'layers.json'  # In the workdir: what was found, for the report.

_ROWS = 2048  # States that are compared, two by two.
_EXAMPLES = 64  # At least so many give them, if there are as many.
_ROLES = ('student', 'teacher')


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
    state = trainer.start(student.config, student.program, student.data)
    found = build_match(student, terms)(
        base.Variables(state.params.student, state.net_state), frozen)
    del state
    for term in terms:
      _say(term, found[term.name])
    pairs = {name: matched.pairs for name, matched in found.items()}
    if jax.process_index() == 0:
      files.write_json(paths.as_path(workdir) / FILE, {
          name: dict(similarity=matched.similarity.tolist(),
                     pairs=matched.pairs) for name, matched in found.items()})
  config = student.config.copy_and_resolve_references()
  for term in terms:
    _select(config, term, tuple((i, j) for i, (j,) in pairs[term.name]))
  built = trainees.build(
      config, student.program.mesh, shared_data=student.data)
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
  grams_of = _build_grams(student, kinds)

  def match(network, frozen):
    grams = grams_of(network, frozen)
    alike = {kind: similarity.cka(*(grams[kind][role] for role in _ROLES))
             for kind in kinds}
    found = {}
    for term in terms:
      selection = layers_lib.adaptive(term.layers)
      assert selection is not None
      values = np.mean([alike[kind] for kind in term.entry.kinds], axis=0)
      found[term.name] = Matched(
          values, similarity.assign(values, selection.monotone))
    return found

  return match


def _build_grams(student, kinds):
  """Returns `(student, teacher) -> {kind: {role: a Gram matrix a layer}}`."""
  program, data = student.program, student.data
  objective = program.objective
  positions = _positions(objective.outputs, data.spec, kinds)
  split = student.config.data.train
  most = max(positions.values())
  indices = sample.choose(data.sizes[split], max(_EXAMPLES, _ROWS // most))
  every = {kind: math.ceil(len(indices) * count / _ROWS)
           for kind, count in positions.items()}
  gather = collectives.build_gather(program.mesh)

  def local(network, frozen, batch, numbers):
    del numbers
    outputs = dict(student=objective.student.infer(network, batch, gather),
                   teacher=objective.teacher.infer(frozen, batch, gather))
    return (), {
        kind: {
            role: jax.tree.map(
                lambda x, kind=kind: x[:, ::every[kind]],
                _rows(output, batch.view(role).mask, kind,
                      pooled=positions[kind] == 1))
            for role, output in outputs.items()}
        for kind in kinds}

  state = program.abstract_state
  variables = (base.Variables(state.params.student, state.net_state),
               program.abstract_frozen)
  run = jax.jit(sample.over_shards(local, program.mesh, variables),
                out_shardings=mesh_lib.replicated(program.mesh))

  def grams(network, frozen):
    parts = [
        jax.device_get(run(network, frozen, *part)[1])
        for part in sample.read(data, split, indices, program.mesh,
                                batch_size=max(1, _ROWS // most))]
    return {
        kind: {role: _joined([part[kind][role] for part in parts])
               for role in _ROLES}
        for kind in kinds}

  return grams


def _joined(parts):
  """Returns a Gram matrix a layer, of the rows that count."""
  keep = np.concatenate([keep.ravel() for _, keep in parts])
  layers = zip(*(layers for layers, _ in parts))
  return [similarity.gram(np.concatenate(
      [x.reshape(-1, x.shape[-1]) for x in layer])[keep]) for layer in layers]


def _positions(outputs, spec, kinds) -> dict[str, int]:
  """Returns how many rows an example gives, by kind.

  A row is a position where all layers of both networks have the same ones, and
  the mean over positions elsewhere.
  """
  counts = {}
  for kind in kinds:
    found = {
        math.prod(shape[1:-1])
        for role, output in zip(_ROLES, outputs)
        for shape in _shapes(output, spec.view(role).mask, kind)}
    are_same = len(found) == 1 and not pairs_lib.have_own_tokens(spec)
    counts[kind] = found.pop() if are_same else 1
  return counts


def _shapes(output, mask, kind):
  run = functools.partial(_rows, kind=kind, pooled=False)
  layers, _ = jax.eval_shape(run, output, mask)
  return [layer.shape for layer in layers]


def _rows(output: network_lib.NetworkOutput, mask: jax.Array, kind: str,
          pooled: bool) -> tuple[tuple[jax.Array, ...], jax.Array]:
  """Returns the states of all layers, and where they count.

  Args:
    output: of a network.
    mask: of its view of the batch.
    kind: of the taps; maps are means over their heads.
    pooled: whether positions are averaged.

  Returns:
    `[B, P, D]` float32 a layer, and bool `[B, P]`; P is 1 if pooled.
  """
  layers = []
  for value in output.taps[kind]:
    own = pairs_lib.tap_mask(mask, value, kind)
    value = masking.materialise(value, own).astype(jnp.float32)
    if kind == 'attention' and value.ndim == 4:
      value = jnp.mean(value, axis=1)
    own = jnp.broadcast_to(
        masking.expand(own, value.ndim - 1), value.shape[:-1])
    rows = value.reshape(len(value), -1, value.shape[-1])
    keep = own.reshape(rows.shape[:2])
    if pooled:
      count = jnp.maximum(jnp.sum(keep, axis=1), 1)
      rows = jnp.sum(masking.clean(rows, keep), axis=1) / count[:, None]
      rows, keep = rows[:, None], jnp.any(keep, axis=1, keepdims=True)
    layers.append(rows)
  return tuple(layers), keep


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
