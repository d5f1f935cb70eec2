"""The mesh and the platform that a function is traced for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import mesh_context

MESH = jax.make_mesh((2,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
SPEC = jax.sharding.PartitionSpec('x')


def run(start):
  """Sums a shard's numbers in a loop whose first carry `start` returns."""

  def local(x):
    add = lambda carry, row: (carry + row, None)
    total, _ = jax.lax.scan(add, start(jnp.float32(0), x), x)
    return total[None]

  return jax.shard_map(local, mesh=MESH, in_specs=SPEC, out_specs=SPEC)(
      jnp.arange(6.0))


def test_vary_like_lets_a_loop_start_with_zeros():
  sums = run(mesh_context.vary_like)
  np.testing.assert_array_equal(sums, [0 + 1 + 2, 3 + 4 + 5])


def test_loop_that_starts_with_zeros_is_refused_without_it():
  with pytest.raises(TypeError, match='carry'):
    run(lambda zero, x: zero)


def test_vary_like_leaves_arrays_alone_outside_of_shard_map():
  x = jnp.zeros(3)
  assert mesh_context.vary_like(x, jnp.ones(2)) is x


def test_platform_is_that_of_the_mesh(compiled_for):
  assert mesh_context.platform() == jax.default_backend()
  with compiled_for('tpu'):
    assert mesh_context.platform() == 'tpu'


@pytest.mark.parametrize('manual, expected', [
    ({'x'}, True), ({'x', 'y'}, False)])
def test_arrays_may_be_split_over_automatic_axes(manual, expected):
  mesh = jax.make_mesh((1, 2), ('x', 'y'),
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)
  answers = []

  def local(x):
    answers.append(mesh_context.is_split_further())
    return x

  assert not mesh_context.is_split_further()
  unsplit = jax.sharding.PartitionSpec()
  jax.eval_shape(
      jax.shard_map(local, mesh=mesh, in_specs=unsplit, out_specs=unsplit,
                    axis_names=manual), jnp.zeros(2))
  assert answers == [expected]
