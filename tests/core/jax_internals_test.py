"""What each function of `jax_internals` relies on in JAX."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import jax_internals

MESH = jax.make_mesh((2,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
SPEC = jax.sharding.PartitionSpec('x')


def scan_of(jaxpr):
  equation, = [e for e in jaxpr.eqns if e.primitive.name == 'scan']
  return equation


def loop(weights, start, rows):
  """Has 1 constant, carries 2 arrays, and stacks 1 output."""

  def body(carry, row):
    total, number = carry
    return (total + row @ weights, number + 1), total

  return lax.scan(body, (start, 0.0), rows)


def traced():
  return jax.make_jaxpr(loop)(jnp.ones(3), 0.0, jnp.ones((4, 3))).jaxpr


def test_scan_has_constants_first_then_carry():
  equation = scan_of(traced())
  sizes = jax_internals.scan_sizes(equation.params)
  assert sizes == (1, 2)
  constant, *carry, rows = equation.invars
  assert constant.aval.shape == (3,) and rows.aval.shape == (4, 3)
  assert [x.aval.shape for x in carry] == [(), ()]
  assert [x.aval.shape for x in equation.outvars] == [(), (), (4,)]


def test_scan_sizes_leave_out_a_carry_that_was_dropped():
  # The number of iterations is not used, so it is no longer carried.
  function = lambda *args: loop(*args)[1]
  jaxpr = jax.make_jaxpr(function)(jnp.ones(3), 0.0, jnp.ones((4, 3))).jaxpr
  equation = scan_of(jax_internals.drop_dead_code(jaxpr))
  assert jax_internals.scan_sizes(equation.params) == (1, 1)
  assert len(equation.invars) == 3


def test_dead_code_is_dropped_and_inputs_are_kept():
  jaxpr = jax.make_jaxpr(lambda x, y: (jnp.sin(x), jnp.cos(y))[:1])(1.0, 2.0)
  assert len(jaxpr.jaxpr.eqns) == 2
  live = jax_internals.drop_dead_code(jaxpr.jaxpr)
  assert [e.primitive.name for e in live.eqns] == ['sin']
  assert len(live.invars) == 2


@pytest.mark.parametrize('check, expected', [(True, {'x'}), (False, set())])
def test_varying_axes_are_tracked_only_with_check_vma(check, expected):
  seen = []

  def local(x):
    seen.append((jax_internals.varying_axes(x),
                 jax_internals.varying_axes(jnp.ones(2))))
    return x

  jax.eval_shape(
      jax.shard_map(local, mesh=MESH, in_specs=SPEC, out_specs=SPEC,
                    check_vma=check), np.ones(2))
  assert seen == [(expected, set())]


def test_nothing_varies_outside_of_shard_map():
  assert jax_internals.varying_axes(jnp.ones(2)) == set()


def test_cluster_kinds_have_the_methods_that_haikd_calls():
  kinds = jax_internals.cluster_kinds()
  names = [kind.__name__ for kind in kinds]
  assert {'OmpiCluster', 'SlurmCluster', 'GceTpuCluster'} <= set(names)
  kubernetes, = filter(jax_internals.is_kubernetes, kinds)
  assert kubernetes.__name__ == 'K8sCluster'
  for kind in kinds:
    assert isinstance(kind.opt_in_only_method, bool)
    for method in ('is_env_present', 'get_process_count', 'get_process_id',
                   'get_coordinator_address', 'get_local_process_id'):
      assert callable(getattr(kind, method))


def test_there_is_no_coordination_client_before_initialisation():
  assert jax_internals.coordination_client() is None


def test_forgotten_cache_reads_its_flags_again(tmp_path):
  names = ('jax_compilation_cache_dir', 'jax_enable_compilation_cache',
           'jax_persistent_cache_min_compile_time_secs')
  before = {name: getattr(jax.config, name) for name in names}
  try:
    jax.config.update('jax_compilation_cache_dir', str(tmp_path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    for enabled in (False, True):
      jax.config.update('jax_enable_compilation_cache', enabled)
      jax_internals.forget_compilation_cache()
      jax.jit(lambda x: jnp.sinh(x) * 3)(1.0).block_until_ready()
      assert any(tmp_path.iterdir()) == enabled
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    jax_internals.forget_compilation_cache()
