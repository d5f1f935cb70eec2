"""What a run holds on its mesh, as shapes with shardings."""

from typing import Optional

import jax
import jax.numpy as jnp

from haikd import config as config_lib
from haikd.core import base
from haikd.engine import mesh as mesh_lib
from haikd.network import network as network_lib
from haikd.network import precision


def place_state(state: base.TrainState, student: network_lib.Network,
                mesh: jax.sharding.Mesh) -> base.TrainState:
  """Returns a state with the sharding of each array.

  The optimizer's moments have the names of the parameters, so that the same
  rules match them.

  Args:
    state: ShapeDtypeStructs.
    student: that is trained.
    mesh: where it runs.
  """
  place = lambda tree, rules: mesh_lib.place(mesh, tree, rules)
  layout = jax.tree.map(lambda _: mesh_lib.replicated(mesh), state)._replace(
      params=base.Params(
          place(state.params.student, student.tensor),
          place(state.params.align, {})),
      opt_state=place(state.opt_state, student.tensor),
      ema=place(state.ema, student.tensor))
  return mesh_lib.abstract(state, layout)


def frozen_of(config: config_lib.ConfigDict,
              teacher: Optional[network_lib.Network], spec: base.Batch,
              mesh: jax.sharding.Mesh) -> Optional[base.Variables]:
  """Returns a teacher's parameters and state; None for None.

  Args:
    config: whose `teacher` it is.
    teacher: the network.
    spec: a batch of ShapeDtypeStructs.
    mesh: where it runs.
  """
  if teacher is None:
    return None
  params, net_state = jax.eval_shape(
      teacher.init, jax.random.key(0), one_example(spec, abstract=True))
  policy = precision.policy(config.teacher.precision)
  params = jax.eval_shape(policy.cast_to_compute, params)
  layout = base.Variables(
      mesh_lib.place(mesh, params, teacher.tensor),
      jax.tree.map(lambda _: mesh_lib.replicated(mesh), net_state))
  return mesh_lib.abstract(base.Variables(params, net_state), layout)


def one_example(spec: base.Batch, *, abstract: bool = False) -> base.Batch:
  """Returns a batch of one example: zeros, or ShapeDtypeStructs.

  Args:
    spec: a batch of ShapeDtypeStructs.
    abstract: whether to return ShapeDtypeStructs.
  """
  make = jax.ShapeDtypeStruct if abstract else jnp.zeros
  return jax.tree.map(lambda x: make((1,) + x.shape[1:], x.dtype), spec)


def freeze(network: base.Variables, target: base.Variables) -> base.Variables:
  """Returns a teacher in its compute dtype, on the mesh.

  Args:
    network: its parameters and state.
    target: the same, from `frozen_of`.
  """
  network = jax.tree.map(
      lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), network,
      target)
  return jax.device_put(network, mesh_lib.shardings_of(target))


def batch_of(spec: base.Batch, mesh: jax.sharding.Mesh) -> base.Batch:
  """Returns what `collectives.shard_batch` makes, with shardings.

  Args:
    spec: a global batch of ShapeDtypeStructs.
    mesh: where it runs.
  """
  sharding = jax.sharding.NamedSharding(mesh, mesh_lib.BATCH_SPEC)
  return mesh_lib.abstract(spec, jax.tree.map(lambda _: sharding, spec))
