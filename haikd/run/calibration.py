"""States of networks on a sample of the training split, before the first step.

They decide how alignments start, and which layers are paired.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.core import masking
from haikd.data import pipeline
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import sample
from haikd.network import network as network_lib
from haikd.objective import pairs as pairs_lib
from haikd.run import teachers

ROLES = ('student', 'teacher')

_ROWS = 2048  # States of a layer.
_EXAMPLES = 64  # At least so many give them, if there are as many.

States = Mapping[str, Mapping[str, Sequence[np.ndarray]]]


def build_states(
    config: config_lib.ConfigDict, program: program_lib.Program,
    data: pipeline.Data, kinds: Sequence[str]
) -> Callable[[base.Variables, base.Variables], States]:
  """Returns a function that runs student and teacher on the sample.

  All processes must call it.

  Args:
    config: of the student, resolved.
    program: its program, of a stage with a teacher.
    data: its data.
    kinds: of taps, of which both networks have some.

  Returns:
    `(student, teacher) -> {kind: {role: float32 [n, D] a layer}}`, given the
    variables of both on the mesh. A row is a position that counts, the same for
    all layers of both networks if these have the same positions, else the mean
    over the positions of an example. Attention maps are means over their heads.
  """
  objective = program.objective
  positions = _positions(objective.outputs, data.spec, kinds)
  split = config.data.train
  most = max(positions.values())
  indices = sample.choose(data.sizes[split], max(_EXAMPLES, _ROWS // most))
  chosen = {kind: _choose(count, _ROWS // len(indices))
            for kind, count in positions.items()}
  gather = collectives.build_gather(program.mesh)

  def local(network, frozen, batch, numbers):
    del numbers
    outputs = dict(student=objective.student.infer(network, batch, gather),
                   teacher=objective.teacher.infer(frozen, batch, gather))
    return (), {
        kind: {
            role: jax.tree.map(
                lambda x, kind=kind: x[:, chosen[kind]],
                _rows(output, batch.view(role).mask, kind,
                      pooled=positions[kind] == 1))
            for role, output in outputs.items()}
        for kind in kinds}

  state = program.abstract_state
  variables = (base.Variables(state.params.student, state.net_state),
               program.abstract_frozen)
  run = jax.jit(sample.over_shards(local, program.mesh, variables),
                out_shardings=mesh_lib.replicated(program.mesh))

  def states(network, frozen):
    parts = [
        jax.device_get(run(network, frozen, *part)[1])
        for part in sample.read(data, split, indices, program.mesh,
                                batch_size=max(1, _ROWS // most))]
    return {
        kind: {role: _joined([part[kind][role] for part in parts])
               for role in ROLES}
        for kind in kinds}

  return states


def calibrate(config: config_lib.ConfigDict, program: program_lib.Program,
              data: pipeline.Data, state: base.TrainState,
              teacher: Optional[teachers.Teacher]) -> base.TrainState:
  """Returns a state whose alignments start from the teacher's states.

  Those of a term are found for the layers of the first stage that has it.

  Args:
    config: as for `build_states`.
    program: as for `build_states`.
    data: as for `build_states`.
    state: before the first step.
    teacher: of the run, or None.
  """
  align, calibrated = dict(state.params.align), set()
  network = base.Variables(state.params.student, state.net_state)
  if teacher is None:
    return state
  for number, stage in enumerate(program.stages):
    objective = stage.objective
    terms = [term for term in objective.terms
             if term.aligner.calibrate and term.name in align and
             term.name not in calibrated]
    if not terms:
      continue
    calibrated |= {term.name for term in terms}
    kinds = sorted({kind for term in terms for kind in term.entry.kinds})
    found = build_states(config, program.of_stage(number), data, kinds)(
        network, teacher.of_stage(number))
    for term in terms:
      layers = dict(align[term.name])
      for i, (_, group) in enumerate(objective.layers[term.name]):
        for kind in term.entry.kinds if str(i) in layers else ():
          # A loss on several taps has an alignment for each.
          scope = '' if isinstance(term.entry.on, str) else f'{kind}/'
          rows = np.mean([found[kind]['teacher'][j] for j in group], axis=0)
          layers[str(i)] = _calibrated(
              term.aligner.calibrate, layers[str(i)], rows, scope)
      align[term.name] = layers
  return state._replace(params=state.params._replace(align=align))


def _calibrated(change, params, rows, scope):
  """Returns the parameters of a layer, placed as they were."""
  own = {name.removeprefix(scope): values for name, values in params.items()
         if name.startswith(scope)}
  whole = jax.tree.map(lambda x: np.asarray(jax.jit(
      lambda x: x, out_shardings=mesh_lib.replicated(x.sharding.mesh))(x)), own)
  changed = {scope + name: values
             for name, values in change(whole, rows).items()}
  return {name: jax.tree.map(_placed, dict(changed[name]), values)
          if name in changed else values for name, values in params.items()}


def _placed(new, old):
  """Returns an array on the devices of another."""
  new = np.asarray(new, old.dtype)
  return jax.make_array_from_callback(
      new.shape, old.sharding, lambda index: new[index])


def _choose(count: int, limit: int) -> np.ndarray:
  """Returns positions at random: regular ones might lie in one column."""
  chosen = np.random.default_rng(0).permutation(count)[:max(limit, 1)]
  return np.sort(chosen)


def _joined(parts):
  """Returns the rows that count, a layer each."""
  keep = np.concatenate([keep.ravel() for _, keep in parts])
  layers = zip(*(layers for layers, _ in parts))
  return [np.concatenate([x.reshape(-1, x.shape[-1]) for x in layer])[keep]
          for layer in layers]


def _positions(outputs, spec, kinds) -> dict[str, int]:
  """Returns how many rows an example gives, by kind.

  A row is a position where all layers of both networks have the same ones, and
  the mean over positions elsewhere.
  """
  counts = {}
  for kind in kinds:
    found = {
        math.prod(shape[1:-1])
        for role, output in zip(ROLES, outputs)
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
