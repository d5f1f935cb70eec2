"""Counting: work and traffic of small steps against numbers worked out by hand.

Sizes are primes, or nearly, so that no wrong formula gives the right number.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import scopes
from haikd.engine import counting
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib

P = jax.sharding.PartitionSpec
AXES = ('replica', 'fsdp', 'tensor')


def make_mesh(*sizes):
  return jax.make_mesh(
      sizes, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def count(function, *shapes, devices=1, dtype=jnp.float32):
  arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
  return counting.count(jax.make_jaxpr(function)(*arguments), devices)


def test_matrix_product():
  counted = count(lambda x, y: x @ y, (3, 5), (5, 7))
  assert counted.flops == 2 * 3 * 5 * 7
  assert counted.bytes == 4 * (3 * 5 + 5 * 7 + 3 * 7)
  assert counted.traffic == () and counted.open_loops == 0


def test_bytes_follow_the_dtype():
  counted = count(lambda x, y: x @ y, (3, 5), (5, 7), dtype=jnp.bfloat16)
  assert counted.bytes == 2 * (3 * 5 + 5 * 7 + 3 * 7)


def test_batched_product_counts_its_batch_once():
  counted = count(
      lambda x, y: jnp.einsum('bij,bjk->bik', x, y), (11, 3, 5), (11, 5, 7))
  assert counted.flops == 2 * 11 * 3 * 5 * 7


@pytest.mark.parametrize('groups', [1, 2])
def test_convolution(groups):
  def conv(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups)

  # Every output, of 5 x 4 places and 6 features, sums 3 x 2 x 4/groups inputs.
  counted = count(conv, (2, 7, 5, 4), (3, 2, 4 // groups, 6))
  assert counted.flops == 2 * (2 * 5 * 4 * 6) * (3 * 2 * 4 // groups)


def test_zeros_between_inputs_are_not_multiplied():
  def conv(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), ((1, 1), (1, 1)), lhs_dilation=(2, 2),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  # 2 x 4 - 1 = 7 places a side, of whose 9 inputs a quarter is not zero.
  counted = count(conv, (1, 4, 4, 5), (3, 3, 5, 6))
  assert counted.flops == 2 * 7 * 7 * 6 * (3 * 3 * 5) / 4


def test_scan_multiplies_and_nests():
  def step(x, w):
    inner = lambda x, _: (jnp.tanh(x @ w), None)
    outer = lambda x, _: (lax.scan(inner, x, None, length=3)[0], None)
    return lax.scan(outer, x, None, length=5)[0]

  assert count(step, (7, 7), (7, 7)).flops == 15 * 2 * 7**3


def test_loop_of_unknown_length_counts_once_and_says_so():
  def step(x, w):
    return lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

  counted = count(step, (7, 7), (7, 7))
  assert (counted.flops, counted.open_loops) == (2 * 7**3, 1)


def test_function_of_itself_has_an_end():
  twice = jax.jit(jnp.tanh)

  def step(x):
    rounds = jnp.sum(x > 0)
    return jax.lax.fori_loop(0, rounds, lambda _, y: y / 2, twice(twice(x)))

  assert count(step, (3,)).open_loops == 1


@pytest.mark.parametrize('limit', [2.5, np.inf])
def test_minimum_of_numbers_is_no_limit(limit):
  def step(x):
    rounds = jnp.sum(x > 0)
    first = jnp.minimum(x[0], limit)
    return jax.lax.fori_loop(0, rounds, lambda _, y: y / 2, first)

  assert count(step, (3,)).open_loops == 1


def test_limit_is_found_through_functions():
  """As where a step is computed again: its limits come from elsewhere."""
  limit = jax.jit(lambda x: lax.min(jnp.int32(x.sum()), np.int32(5)))

  @jax.jit
  def loop(end, x, w):
    return lax.fori_loop(0, end, lambda _, x: x @ w, x)

  @jax.jit
  def step(x, w):
    return loop(limit(x), x, w)

  counted = count(step, (7, 7), (7, 7))
  assert (counted.flops, counted.open_loops) == (5 * 2 * 7**3, 0)


def test_limits_that_a_scan_keeps_for_another_are_found():
  def step(x, w):
    keep = lambda x, _: (x @ w, lax.min(jnp.int32(x.sum()), np.int32(5)))
    x, ends = lax.scan(keep, x, None, length=3)
    use = lambda x, end: (lax.fori_loop(0, end, lambda _, x: x @ w, x), None)
    return lax.scan(use, x, ends)[0]

  counted = count(step, (7, 7), (7, 7))
  assert (counted.flops, counted.open_loops) == ((3 + 3 * 5) * 2 * 7**3, 0)


def test_limit_that_a_scan_changes_is_not_known():
  def step(x, w):
    def use(carry, _):
      x, end = carry
      x = lax.fori_loop(0, end, lambda _, x: x @ w, x)
      return (x, end + jnp.int32(x.sum())), None

    start = lax.min(jnp.int32(x.sum()), np.int32(5))
    return lax.scan(use, (x, start), None, length=3)[0][0]

  assert count(step, (7, 7), (7, 7)).open_loops == 1


def test_dearest_branch_counts():
  def step(x, w):
    return lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

  assert count(step, (7, 7), (7, 7)).flops == 2 * 2 * 7**3


def test_all_of_the_dearest_branch_counts():
  def step(x, w):
    looped = lambda x: lax.while_loop(
        lambda x: x.sum() < 9, lambda x: x @ w @ w, x)
    return lax.cond(x.sum() > 0, looped, lambda x: x @ w, x)

  counted = count(step, (7, 7), (7, 7))
  assert counted.flops == 2 * 2 * 7**3 and counted.open_loops == 1
  assert counted.bytes == 2 * 4 * 3 * 7 * 7


@pytest.mark.parametrize('wrap', [jax.jit, jax.remat, lambda f: f])
def test_calls_are_entered(wrap):
  assert count(wrap(lambda x, w: x @ w), (3, 5), (5, 7)).flops == 2 * 3 * 5 * 7


def test_custom_gradient_is_entered():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)),
                 lambda held, g: (g @ held[1].T, held[0].T @ g))
  assert count(product, (3, 5), (5, 7)).flops == 2 * 3 * 5 * 7
  gradient = jax.grad(lambda x, w: product(x, w).sum(), argnums=(0, 1))
  # The product itself is not used by the gradient of a sum.
  assert count(gradient, (3, 5), (5, 7)).flops == 2 * 2 * 3 * 5 * 7


def test_remat_runs_the_forward_pass_again():
  def loss(wrap, x, w):
    return wrap(lambda x: jnp.tanh(jnp.tanh(x @ w) @ w))(x).sum()

  gradient = jax.grad(loss, argnums=(1, 2))
  plain = count(functools.partial(gradient, lambda f: f), (7, 7), (7, 7))
  again = count(functools.partial(gradient, jax.remat), (7, 7), (7, 7))
  # Two products forward and four back. The backward pass of a block that is
  # computed again needs both products' results, and the first pass none.
  assert plain.flops == 6 * 2 * 7**3
  scanned = lambda x, w: lax.scan(  # A loop keeps the first pass alive.
      jax.remat(lambda x, _: (jnp.tanh(jnp.tanh(x @ w) @ w), None)),
      x, None, length=3)[0].sum() ** 2
  assert again.flops == 6 * 2 * 7**3
  assert count(jax.grad(scanned), (7, 7), (7, 7)).flops == 3 * 2 * (
      2 + 2 + 2) * 7**3


def test_dead_code_is_not_counted():
  def step(x, w):
    def body(carry, _):
      x, kept = carry
      return (x, kept + 1), x @ w  # Nobody uses this product.

    (_, kept), _ = lax.scan(body, (x, 0.0), None, length=3)
    return kept, (x @ w).shape[0] * x

  assert count(step, (7, 7), (7, 7)).flops == 0


class TestTraffic:
  """Steps inside `shard_map` on eight devices."""

  def run(self, mesh, local, shape, in_spec, out_spec, manual=AXES):
    step = jax.shard_map(
        local, mesh=mesh, in_specs=in_spec, out_specs=out_spec,
        axis_names=set(manual), check_vma=False)
    return count(step, shape, devices=mesh.size)

  def test_scan_of_gathers(self):
    def local(w):  # [3, 2, 5] on each of 4 devices.
      body = lambda x, w: (
          x + lax.all_gather(w, 'fsdp', axis=0, tiled=True), None)
      return lax.scan(body, jnp.zeros((8, 5)), w)[0]

    counted = self.run(
        make_mesh(2, 4, 1), local, (3, 8, 5), P(None, 'fsdp'), P())
    whole = 8 * 5 * 4
    assert counted.traffic == (
        ('all-gather', ('fsdp',), 3, 3 * whole, 3 * whole * 3 / 4),)

  def test_gradient_of_a_gather_is_a_scatter(self):
    def local(w):
      loss = lambda w: jnp.sum(
          lax.all_gather(w, 'fsdp', axis=0, tiled=True) ** 2)
      return jax.grad(loss)(w)

    counted = self.run(make_mesh(1, 8, 1), local, (16, 5), P('fsdp'), P('fsdp'))
    whole = 16 * 5 * 4
    assert counted.traffic == (
        ('all-gather', ('fsdp',), 1, whole, whole * 7 / 8),
        ('reduce-scatter', ('fsdp',), 1, whole, whole * 7 / 8))

  def test_reduction_goes_round_twice(self):
    local = lambda x: lax.psum(x, ('fsdp', 'replica'))
    counted = self.run(make_mesh(2, 4, 1), local, (8, 5), P('fsdp'), P())
    held = 2 * 5 * 4
    assert counted.traffic == (
        ('all-reduce', ('replica', 'fsdp'), 1, held, 2 * held * 7 / 8),)

  @pytest.mark.parametrize('swap', [False, True])
  def test_of_branches_that_compute_alike_the_one_that_sends_more_counts(
      self, swap):
    def local(x):  # [2, 5] on each of 4 devices.
      branches = [lambda x: lax.psum(x, 'fsdp'),
                  lambda x: x + lax.psum(x[:1], 'fsdp')]
      return lax.cond(x.sum() > 0, *(branches[::-1] if swap else branches), x)

    counted = self.run(make_mesh(2, 4, 1), local, (8, 5), P('fsdp'), P('fsdp'))
    held = 2 * 5 * 4
    assert counted.traffic == (
        ('all-reduce', ('fsdp',), 1, held, 2 * held * 3 / 4),)

  def test_groups_are_smaller_than_their_axis(self):
    def local(x):  # [2, 5] on each of 8 devices, gathered over 4.
      groups = [[0, 2, 4, 6], [1, 3, 5, 7]]
      return lax.all_gather(x, 'fsdp', axis_index_groups=groups, tiled=True)

    counted = self.run(make_mesh(1, 8, 1), local, (16, 5), P('fsdp'), P('fsdp'))
    whole = 8 * 5 * 4
    assert counted.traffic == (
        ('all-gather', ('fsdp',), 1, whole, whole * 3 / 4),)

  def test_axes_taken_over_one_by_one_are_all_manual(self):
    def inner(x, w):  # [3, 5] and [5, 6] on each of 8 devices.
      return x @ w

    def local(x):
      return jax.shard_map(
          inner, in_specs=(P(), P(None, 'tensor')), out_specs=P(None, 'tensor'),
          axis_names={'tensor'}, check_vma=False)(x, jnp.ones((5, 12)))

    counted = self.run(make_mesh(1, 4, 2), local, (12, 5), P('fsdp'), P('fsdp'),
                       manual=('replica', 'fsdp'))
    assert counted.flops == 2 * 3 * 5 * 6

  def test_permutation_and_exchange(self):
    def local(x):
      x = lax.ppermute(x, 'fsdp', [(i, (i + 1) % 8) for i in range(8)])
      return lax.all_to_all(x, 'fsdp', 0, 0, tiled=True)

    counted = self.run(make_mesh(1, 8, 1), local, (64, 3), P('fsdp'), P('fsdp'))
    held = 8 * 3 * 4
    assert counted.traffic == (
        ('all-to-all', ('fsdp',), 1, held, held * 7 / 8),
        ('collective-permute', ('fsdp',), 1, held, held))

  def test_axis_of_one_device_sends_nothing(self):
    local = lambda x: lax.psum(x, 'replica')
    counted = self.run(make_mesh(1, 8, 1), local, (8, 5), P('fsdp'), P('fsdp'))
    assert counted.traffic == ()

  def test_manual_shapes_are_local_and_automatic_ones_whole(self):
    def local(x):  # [3, 5] on each of 4 devices; two halves over tensor.
      return lax.all_gather(x @ jnp.ones((5, 6)), 'fsdp', tiled=True)

    counted = self.run(make_mesh(1, 4, 2), local, (12, 5), P('fsdp'), P(),
                       manual=('replica', 'fsdp'))
    assert counted.flops == 2 * 3 * 5 * 6 / 2
    [sent] = counted.traffic
    assert (sent.payload, sent.wire) == (288 / 2, 288 / 2 * 3 / 4)

  def test_outside_work_is_split_over_all_devices(self):
    counted = count(lambda x, w: x @ w, (8, 5), (5, 7), devices=8)
    assert counted.flops == 2 * 8 * 5 * 7 / 8

  def test_marks_move_nothing(self):
    local = lambda x: lax.pcast(x, ('fsdp',), to='varying')
    step = jax.shard_map(local, mesh=make_mesh(1, 8, 1), in_specs=P(),
                         out_specs=P('fsdp'))
    assert count(step, (3, 5), devices=8).traffic == ()


@pytest.mark.parametrize('kind, sent', [
    ('all-gather', 75.), ('reduce-scatter', 75.), ('all-to-all', 75.),
    ('all-reduce', 150.), ('collective-permute', 100.)])
def test_bytes_on_a_ring_of_four(kind, sent):
  assert counting.on_the_wire(kind, 100., 4) == sent


def test_transformer_takes_six_operations_a_parameter_and_token():
  layers, width, hidden, batch, length = 3, 64, 256, 2, 32
  parameters = layers * (4 * width**2 + 2 * width * hidden)

  def loss(blocks, x):
    def block(x, w):
      q, k, v = jnp.split(x @ w['qkv'], 3, -1)
      scores = jax.nn.softmax(jnp.einsum('bnd,bmd->bnm', q, k))
      x += jnp.einsum('bnm,bmd->bnd', scores, v) @ w['out']
      return x + jax.nn.gelu(x @ w['up']) @ w['down'], None

    return lax.scan(block, x, blocks)[0].sum() ** 2

  shapes = dict(qkv=(width, 3 * width), out=(width, width),
                up=(width, hidden), down=(hidden, width))
  blocks = {name: jax.ShapeDtypeStruct((layers, *shape), jnp.float32)
            for name, shape in shapes.items()}
  x = jax.ShapeDtypeStruct((batch, length, width), jnp.float32)
  jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(blocks, x)
  # Scores and their use: 2 products of N x N x D forward, twice that back.
  attention = layers * batch * 3 * 2 * 2 * length**2 * width
  expected = 6 * parameters * batch * length + attention
  assert counting.count(jaxpr, 1).flops == pytest.approx(expected, rel=0.02)


def test_forward_pass_of_the_teacher_is_counted_apart():
  """In loops, behind a gradient, and in a branch too."""

  def step(x, y):
    with scopes.teacher():
      target = lax.scan(lambda z, _: (z @ y, None), x, None, length=11)[0]
      target = lax.cond(x[0, 0] > 0, lambda: target @ y, lambda: target)
    return jax.grad(lambda y: jnp.sum((x @ y - target)**2))(y)

  counted = count(step, (3, 5), (5, 5))
  product = 2 * 3 * 5 * 5
  assert counted.teacher_flops == (11 + 1) * product
  assert counted.flops == (12 + 2) * product


@pytest.mark.parametrize('on_logits', [True, False])
def test_teacher_of_a_step_is_counted_apart(on_logits):
  """A Llama's logits are made chunk by chunk, where the loss is."""
  config = config_lib.base()
  config.batch_size = 2
  options = dict(depth=1, heads=1, hidden=8)
  for side, width in (('student', 8), ('teacher', 16)):
    config[side].model = 'llama'
    config[side].options = dict(options, width=width)
  if not on_logits:
    config.distillation.alpha = None
    config.distillation.use_feature_matching = True
  tokens = jax.ShapeDtypeStruct((2, 6), jnp.int32)
  batch = base.Batch(tokens, jax.ShapeDtypeStruct((2, 6), jnp.bool_))
  program = program_lib.build_program(
      config, spec=batch, num_classes=32, has_teacher=True,
      mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:1]))
  stage = program.stages[0]
  traced = stage.train_step.trace(
      stage.abstract_state, stage.abstract_frozen, batch)
  counted = counting.count(traced.jaxpr, 1)
  teacher = program.objective.teacher

  def forward(frozen, batch):
    logits = teacher.infer(frozen, batch, None).logits
    return logits.materialise() if on_logits else logits.hidden

  alone = jax.make_jaxpr(forward)(stage.abstract_frozen, batch)
  assert counted.teacher_flops == counting.count(alone, 1).flops
  assert 0 < counted.teacher_flops < counted.flops
