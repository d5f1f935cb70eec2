"""Runs a student and its teacher on a sample of a split, for the report."""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from haikd import config as config_lib
from haikd import metrics
from haikd.align import similarity
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.core import registry
from haikd.core import tasks
from haikd.data import pipeline
from haikd.engine import collectives
from haikd.engine import evaluate
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import sample
from haikd.network import network as network_lib
from haikd.objective import pairs as pairs_lib
from haikd.report import measures
from haikd.report import states

ROLES = ('student', 'teacher')
FEATURES, ATTENTION = states.FEATURES, states.ATTENTION

MAX_POSITIONS = 2**16  # Of texts in a sample.
_MAX_COMPARED = 256  # Examples whose states are compared, two by two.
_MAX_MAP = 256  # Positions of an attention map.


class Observation(NamedTuple):
  """What was seen of one network beside the teacher, NumPy.

  Attributes:
    numbers: `[n]`, the examples of the sample, by their index in the split.
    sums: `{role: sums}` of `measures.measure`, over the sample.
    columns: `{role: columns}`, a row for each of `numbers`.
    grams: `{role: one [m, m] a layer}`, the inner products of the hidden states
      of some examples, means over positions; empty without features.
    vectors: `{role: [m, m]}`, likewise of the vectors of encoders, scaled to
      length 1.
  """

  numbers: np.ndarray
  sums: dict[str, Any]
  columns: dict[str, Any]
  grams: dict[str, Sequence[np.ndarray]]
  vectors: dict[str, np.ndarray]


class Probe:
  """Observes networks of one architecture on a sample of the final split.

  Compiled once. All processes must call it.

  Attributes:
    family: the kind of output, see `metrics.family_of`.
    size: the number of examples in the split.
    limit: how many of them a sample has at most.
    kinds: the kinds of taps that both networks have.

  Args:
    config: of the student, resolved.
    program: its program, with a teacher.
    data: the data.
  """

  def __init__(self, config: config_lib.ConfigDict,
               program: program_lib.Program, data: pipeline.Data):
    self._config, self._program, self._data = config, program, data
    self._split = config.evaluation.final
    self.size = data.sizes[self._split]
    self._variables = dict(
        student=program_lib.trained_network(program.abstract_state),
        teacher=program.abstract_frozen)
    self._spec = data.evaluation_spec(self._split)
    positions = math.prod(self._spec.mask.shape[1:])
    self.limit = min(config.report.examples,
                     max(MAX_POSITIONS // positions, 1))
    self._gather = collectives.build_gather(program.mesh)
    objective = program.compared
    self.family = metrics.family_of(
        objective.outputs[0].logits, objective.task)
    self.kinds = tuple(
        kind for kind in (FEATURES, ATTENTION)
        if all(self._has(role, kind) for role in ROLES))
    self._observe = self._compiled_observe()

  def observe(self, network: base.Variables,
              frozen: base.Variables) -> Observation:
    """Observes a network beside the teacher.

    Args:
      network: parameters and state of the student.
      frozen: those of the teacher.
    """
    indices = sample.choose(self.size, self.limit)
    total = evaluate.Total()
    rows: list[np.ndarray] = []
    compared: list[Any] = []
    for batch, numbers in self._batches(indices):
      results = self._observe(network, frozen, batch, numbers)
      sums, columns, numbers, some = results
      total.add((sums, columns))
      if sum(len(x) for x in rows) < _MAX_COMPARED:
        kept = np.asarray(numbers[:_MAX_COMPARED]) >= 0
        compared.append(jax.tree.map(
            lambda x, kept=kept: np.asarray(x)[kept], some))
      rows.append(np.asarray(numbers))
    numbers = np.concatenate(rows)
    order = np.argsort(numbers)[np.count_nonzero(numbers < 0):]
    columns = jax.tree.map(
        lambda *parts: np.concatenate(parts)[order], *total.columns)
    grams, vectors = jax.tree.map(
        lambda *parts: np.concatenate(parts)[:_MAX_COMPARED], *compared)
    return Observation(
        numbers[order], total.sums, columns,
        jax.tree.map(similarity.gram, grams),
        jax.tree.map(lambda x: x @ x.T, vectors))

  def maps(self, network: base.Variables, frozen: base.Variables,
           indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns attention maps of the last layers, means over their heads.

    Args:
      network: parameters and state of the student.
      frozen: those of the teacher.
      indices: of the examples, in the split.

    Returns:
      `{role: [n, N, M]}` in the order of the indices; empty where a network
      has no maps, or too large ones.
    """
    if ATTENTION not in self.kinds:
      return {}
    networks = self._networks((ATTENTION,))

    def local(network, frozen, batch, numbers):
      maps = {
          role: states.mean_map(
              networks[role].infer(variables, batch, self._gather),
              batch.view(role).mask)
          for role, variables in zip(ROLES, (network, frozen))}
      return (), (maps, numbers)

    run = self._over_shards(local)
    pieces = [jax.device_get(run(network, frozen, *part)[1:3])
              for part in self._batches(indices)]
    maps, numbers = jax.tree.map(lambda *x: np.concatenate(x), *pieces)
    places = [int(np.flatnonzero(numbers == index)[0]) for index in indices]
    return {role: x[places] for role, x in maps.items()}

  def _batches(self, indices):
    return sample.read(self._data, self._split, indices, self._program.mesh)

  def _networks(self, kinds):
    data = self._data
    count = tasks.count_outputs(
        self._program.compared.task, data.spec.labels, data.num_classes)
    return {
        role: network_lib.build_network(
            self._config[role], title=role, num_classes=count, kinds=kinds)
        for role in ROLES}

  def _has(self, role, kind):
    """Returns whether a network offers taps of a kind that can be shown."""
    config = self._config[role]
    declared = registry.models[config.model].taps
    if kind not in {**declared, **config.taps}:
      return False

    def run(variables, batch):
      network = self._networks((kind,))[role]
      output = network.infer(variables, batch)
      if kind == ATTENTION:
        return states.mean_map(output, batch.view(role).mask)
      return states.pooled(output, batch.view(role).mask)

    try:
      found = jax.eval_shape(run, self._variables[role], self._spec)
    except Exception as err:  # Whatever a user's network raises.
      notes.say(f'The report leaves out {kind} of the {role}: '
                f'{checks.describe(err)}.')
      return False
    return kind == FEATURES or max(found.shape[1:]) <= _MAX_MAP

  def _over_shards(self, local):
    """Compiles `local` for the mesh; what it returns is whole everywhere."""
    mesh = self._program.mesh
    run = sample.over_shards(
        local, mesh, tuple(self._variables[role] for role in ROLES))

    def whole(*args):
      sums, (columns, numbers) = run(*args)
      some = jax.tree.map(
          lambda x: x[:_MAX_COMPARED],
          [columns.pop(name, {}) for name in ('states', 'vectors')])
      return sums, columns, numbers, some

    return jax.jit(whole, out_shardings=mesh_lib.replicated(mesh))

  def _compiled_observe(self):
    """Returns `(network, frozen, batch, numbers) -> results`."""
    program = self._program
    objective = program.compared
    networks = self._networks(
        (FEATURES,) if FEATURES in self.kinds else ())
    sizes = collectives.chunk_sizes(
        program.mesh, program_lib.chunk_bytes(self._config))
    same_labels = program_lib.predict_the_same(*objective.outputs)

    def measure(network, frozen, batch):
      outputs = {
          role: networks[role].infer(variables, batch, self._gather)
          for role, variables in zip(ROLES, (network, frozen))}
      sums, columns = {}, {}
      for role, output in outputs.items():
        is_student = role == 'student'
        sums[role], columns[role] = measures.measure(
            output.logits, outputs['teacher'].logits if is_student else None,
            mask=pairs_lib.target_mask(batch, output.logits),
            labels=batch.labels if is_student or same_labels else None,
            weight=batch.weight, task=objective.task, sizes=sizes)
      if FEATURES in self.kinds:
        columns['states'] = {
            role: states.pooled(output, batch.view(role).mask)
            for role, output in outputs.items()}
      if self.family == 'embeddings':
        columns['vectors'] = {role: states.unit(output.logits.vectors)
                              for role, output in outputs.items()}
      return sums, columns

    def local(network, frozen, batch, numbers):
      sums, columns = evaluate.measure_in_parts(
          lambda part: measure(network, frozen, part), batch,
          program_lib.evaluated_rows(self._config, program.mesh))
      return collectives.sum_over_batch(sums), (columns, numbers)

    return self._over_shards(local)
