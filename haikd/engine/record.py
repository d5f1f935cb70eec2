"""Runs a teacher to record its predictions."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import mesh_context
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.losses import cutting
from haikd.objective import pairs as pairs_lib
from haikd.teacher_records import recipe as recipe_lib


class Predicted(NamedTuple):
  """The form of a teacher's predictions.

  Attributes:
    classes: V.
    axes: how many axes they have before that of classes.
    width: D, of the hidden states of lazy logits; None without.
  """

  classes: int
  axes: int
  width: Optional[int]


def describe(logits: base.Output, kind: str) -> Predicted:
  """Returns the form of predictions; refuses those that cannot be recorded.

  Args:
    logits: of the teacher, as shapes.
    kind: of the records.

  Raises:
    ConfigError: vectors of an encoder, or hidden states of a teacher that
      returns none.
  """
  if isinstance(logits, base.Embedding):
    raise checks.ConfigError(
        'config.teacher must return logits to be recorded; got an Embedding. '
        'Leave config.teacher.records out.')
  width = None
  if isinstance(logits, base.LinearLogits):
    width = logits.hidden.shape[-1]
  elif kind == recipe_lib.HIDDEN:
    raise checks.ConfigError(
        "config.teacher.records.kind must be 'sampled' or 'top_k' for a "
        "teacher that returns computed logits; got 'hidden', which keeps the "
        'state that haikd.LinearLogits are computed from.')
  return Predicted(logits.shape[-1], len(logits.shape) - 1, width)


def build_step(program: program_lib.Program, codec: recipe_lib.Codec,
               chunk_bytes: Optional[int]) -> Callable[..., Any]:
  """Builds the compiled step that makes records.

  Args:
    program: of a run with its teacher.
    codec: of the records.
    chunk_bytes: of the logits that a device holds at once; None for what suits
      it.

  Returns:
    `(frozen, batch, uniform) -> arrays`, whose rows are those of the batch and
    lie on the same devices; `uniform` is `[B, …, C]` float32, with the axes of
    positions. Positions that do not count have zeros.
  """
  teacher, mesh = program.compared.teacher, program.mesh
  assert teacher is not None, 'it is what is recorded'
  assert program.abstract_frozen is not None
  gather = collectives.build_gather(mesh)
  sizes = collectives.chunk_sizes(mesh, chunk_bytes)

  def local(frozen, batch, uniform):
    logits = teacher.infer(frozen, batch, gather).logits
    return _make(codec, logits, pairs_lib.target_mask(batch, logits), uniform,
                 sizes)

  specs = jax.tree.map(lambda x: x.sharding.spec, program.abstract_frozen)
  rows = mesh_lib.BATCH_SPEC
  sharding = jax.sharding.NamedSharding(mesh, rows)
  return jax.jit(
      collectives.over_shards(
          local, mesh, in_specs=(specs, rows, rows), out_specs=rows),
      out_shardings=sharding)


def _make(codec, logits, mask, uniform, sizes):
  """Returns what is kept of a shard's predictions, `[B, …]` each."""
  shape = logits.shape[:-1]
  flat_uniform = uniform.reshape(-1, uniform.shape[-1])
  if not isinstance(logits, base.LinearLogits):
    rows = logits.reshape(-1, logits.shape[-1]).astype(jnp.float32)
    # Without a kernel there is nothing lazy: a state is its own logits.
    value, of_chunk = rows, lambda chunk: chunk.of(rows)
    logits = base.LinearLogits(
        logits, jax.ShapeDtypeStruct((1, logits.shape[-1]), jnp.float32))
    cut = cutting.Cut(logits, mask, sizes)
  else:
    cut = cutting.Cut(logits, mask, sizes)
    value = cut.flatten('teacher', logits)
    if hasattr(codec, 'width'):
      of_chunk = lambda chunk: chunk.of(value.hidden)
    else:
      of_chunk = lambda chunk: chunk.of(value).materialise()

  def make(number):
    chunk = cut.chunk(number)
    rows = of_chunk(chunk), chunk.of(flat_uniform)
    # In groups, on CPU, whose arrays stay in a core's cache.
    _, kept = cutting.in_groups(
        lambda part: ((), codec.make(*part)), rows,
        sizes.groups(len(rows[0]), logits.shape[-1]))
    return chunk.positions, kept

  count = math.prod(shape)
  _, shapes = jax.eval_shape(make, jnp.int32(0))
  zeros = jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype),
                       shapes)

  def body(number, total):
    positions, kept = make(number)
    return jax.tree.map(
        lambda x, rows: x.at[positions].set(
            rows, mode='drop', unique_indices=True), total, kept)

  kept = cut.loop(body, mesh_context.vary_like(zeros, value, mask, uniform))
  return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), kept)


def unembedding(program: program_lib.Program, frozen: base.Variables,
                spec: base.Batch) -> base.LinearLogits:
  """Returns the lazy logits of a teacher without their hidden states.

  Args:
    program: of a run with its teacher.
    frozen: the teacher, on the mesh.
    spec: a batch of ShapeDtypeStructs.

  Returns:
    LinearLogits of float32 arrays; None for `hidden`.
  """
  teacher, mesh = program.compared.teacher, program.mesh
  assert teacher is not None, 'it is what is recorded'
  gather = collectives.build_gather(mesh)

  def local(frozen, batch):
    logits = teacher.infer(frozen, batch, gather).logits
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32),
                        logits._replace(hidden=None))

  specs = jax.tree.map(lambda x: x.sharding.spec, program.abstract_frozen)
  replicated = mesh_lib.replicated(mesh)
  rows = mesh_lib.batch_shards(mesh) // mesh_lib.batch_share(mesh).count
  zeros = jax.tree.map(lambda x: np.zeros((rows, *x.shape[1:]), x.dtype), spec)
  run = jax.jit(
      collectives.over_shards(
          local, mesh, in_specs=(specs, mesh_lib.BATCH_SPEC),
          out_specs=replicated.spec), out_shardings=replicated)
  return run(frozen, collectives.shard_batch(mesh, zeros))
