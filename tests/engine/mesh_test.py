"""Which part of every array lies on which device."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib

P = jax.sharding.PartitionSpec


def shape_of(replica=1, fsdp=1, tensor=1):
  return dict(replica=replica, fsdp=fsdp, tensor=tensor)


def structs(**shapes):
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32)
          for name, shape in shapes.items()}


def specs(mesh, tree, rules=None):
  return jax.tree.map(lambda s: s.spec,
                      mesh_lib.place(mesh, tree, rules or {}))


@pytest.mark.parametrize('asked, sizes', (
    ((1, -1, 1), (1, 8, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((-1, 1, 1), (8, 1, 1)),
    ((2, 2, -1), (2, 2, 2)),
    ((8, -1, 1), (8, 1, 1)),
))
def test_one_size_may_be_the_rest(asked, sizes):
  mesh = mesh_lib.build_mesh(shape_of(*asked))
  assert tuple(mesh.shape.values()) == sizes
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize('asked', ((2, 2, 1), (3, -1, 1), (16, 1, 1)))
def test_mesh_that_does_not_use_all_devices_is_refused(asked):
  match = '^config.mesh must use all 8 devices; got replica='
  with pytest.raises(checks.ConfigError, match=match):
    mesh_lib.build_mesh(shape_of(*asked))


@pytest.mark.parametrize('platform', ('tpu', 'gpu'))
def test_replica_spans_slices(platform):
  # Two slices of TPUs, or machines of GPUs, of four each.
  devices = [
      types.SimpleNamespace(
          id=i, platform=platform, device_kind='x', slice_index=i // 4,
          process_index=i // 4) for i in range(8)]
  if platform == 'tpu':
    match = '^config.mesh.replica must be a multiple of the 2 slices; got 1'
    with pytest.raises(checks.ConfigError, match=match):
      mesh_lib.grid_of(devices, (1, 8, 1))
  else:
    grid = mesh_lib.grid_of(devices, (2, 4, 1))
    assert [[d.slice_index for d in row.ravel()] for row in grid] == [
        [0] * 4, [1] * 4]
    # Parameters may be split over machines.
    grid = mesh_lib.grid_of(devices, (1, 8, 1))
    assert [d.id for d in grid.ravel()] == list(range(8))


def test_largest_axis_that_divides_is_split():
  mesh = mesh_lib.build_mesh(shape_of(fsdp=8))
  result = specs(mesh, {
      'm': structs(a=(8, 16), b=(16, 8), c=(7, 8, 24), d=(7,), e=(30, 9), f=(),
                   g=(0, 8))})
  assert result['m'] == dict(
      a=P(None, 'fsdp'), b=P('fsdp', None), c=P(None, None, 'fsdp'), d=P(None),
      e=P(None, None), f=P(), g=P(None, 'fsdp'))


@pytest.mark.parametrize('sizes, rules, spec', (
    # A mesh axis of one device splits nothing and is left out.
    ((8, 1, 1), {'m/w': -1}, P(None, None)),
    ((4, 1, 2), {'m/w': -1}, P(None, 'tensor')),
    ((1, 8, 1), {'m/w': -1}, P(None, 'fsdp')),
    # Rules for axes that do not exist are ignored.
    ((1, 4, 2), {'m/w': 2}, P(None, 'fsdp')),
    ((1, 4, 2), {'m/w': -3}, P(None, 'fsdp')),
))
def test_only_axes_that_divide_are_split(sizes, rules, spec):
  mesh = mesh_lib.build_mesh(shape_of(*sizes))
  assert specs(mesh, {'m': structs(w=(8, 16))}, rules)['m'] == dict(w=spec)


def test_axis_of_layers_is_not_split():
  mesh = mesh_lib.build_mesh(shape_of(fsdp=4, tensor=2))
  name = '__layer_stack_no_per_layer/block/mlp/up'
  twice = 'a/__layer_stack_no_per_layer/b/__layer_stack_no_per_layer/c'
  result = specs(
      mesh, {name: structs(w=(64, 8, 16), b=(64, 16)),
             twice: structs(w=(64, 32, 4))},
      {'mlp/up/w': -1, 'mlp/up/b': 0})
  assert result[name] == dict(w=P(None, 'fsdp', 'tensor'), b=P(None, 'tensor'))
  assert result[twice] == dict(w=P(None, None, 'fsdp'))


def test_first_rule_that_matches_decides():
  mesh = mesh_lib.build_mesh(shape_of(fsdp=4, tensor=2))
  tree = {'block_0/attn/query': structs(w=(8, 8), b=(8,)),
          'block_1/attn/query': structs(w=(8, 8))}
  result = specs(mesh, tree, {'block_1/attn/*/w': None, 'query/w': -1})
  assert result['block_0/attn/query'] == dict(
      w=P('fsdp', 'tensor'), b=P('fsdp'))
  assert result['block_1/attn/query'] == dict(w=P('fsdp', None))


def test_moments_are_split_like_their_parameters():
  mesh = mesh_lib.build_mesh(shape_of(fsdp=4, tensor=2))
  params = {'mlp/up': {'w': jnp.ones((8, 12))}}
  state = jax.eval_shape(optax.adafactor(min_dim_size_to_factor=4).init, params)
  adam = jax.eval_shape(optax.adam(1.0).init, params)
  rules = {'up/w': -1}
  assert specs(mesh, adam, rules)[0].mu == specs(mesh, params, rules)
  # A factored moment has lost an axis; its sharding is valid all the same.
  for sharding, leaf in zip(
      jax.tree.leaves(mesh_lib.place(mesh, state, rules)),
      jax.tree.leaves(state)):
    sharding.shard_shape(leaf.shape)  # Raises where it does not divide.


@pytest.mark.parametrize('rules, match', (
    ({'up/w': 1}, r'^config.mesh.tensor must divide axis 1 of mlp/up/w of the '
     r"student; got 4, shape=\(8, 6\).*config.student.placement\['up/w'\]"),
    ({'up/w': 2}, r'^config.student.placement must give mlp/up/w an axis that '
     r"it has; got \{'up/w': 2\}, shape=\(8, 6\)"),
    ({'down/w': 0}, '^config.student.placement must match parameters; got '
     "'down/w'. .*Known: up/w"),
    ({'up/w': -3}, r"an axis that it has; got \{'up/w': -3\}"),
))
def test_rules_that_cannot_be_followed_are_refused(rules, match):
  mesh = mesh_lib.build_mesh(shape_of(fsdp=2, tensor=4))
  params = {'mlp/up': structs(w=(8, 6))}
  with pytest.raises(checks.ConfigError, match=match):
    mesh_lib.check_rules('student', mesh, params, rules, written=rules)
  assert mesh_lib.check_rules('student', mesh, params, {'up/w': 0})
  assert not mesh_lib.check_rules('student', mesh, params, {'down/w': 0})
  unsplit = mesh_lib.build_mesh(shape_of(fsdp=8))
  assert not mesh_lib.check_rules('student', unsplit, params, {'up/w': 1})
  # What will be wrong on many devices is refused on one.
  with pytest.raises(checks.ConfigError, match='an axis that it has'):
    mesh_lib.check_rules('student', unsplit, params, {'up/w': 2}, ('up/w',))
  # A model's own rules need not fit where they split nothing.
  assert not mesh_lib.check_rules('student', unsplit, params, {'up/w': 2})


def test_rules_of_a_config_that_disagree_are_refused():
  """Its keys come in alphabetical order, whatever was written first."""
  mesh = mesh_lib.build_mesh(shape_of(fsdp=4, tensor=2))
  params = {'mlp/up': structs(w=(8, 6)), 'mlp/down': structs(w=(6, 8))}
  rules = {'*/w': None, 'up/w': -1}
  with pytest.raises(checks.ConfigError, match=(
      r"student.placement must give mlp/up/w one axis; got "
      r"\{'\*/w': None, 'up/w': -1\}")):
    mesh_lib.check_rules('student', mesh, params, rules, written=rules)
  # Of a model's own rules the first decides, and a config's go before them.
  assert mesh_lib.check_rules('student', mesh, params,
                              {'up/w': -1, '*/w': None}, written=('up/w',))


@pytest.mark.parametrize('axis, fits', ((0, True), (-2, True), (1, False),
                                        (-3, False)))
def test_rules_do_not_count_the_axis_of_layers(axis, fits):
  mesh = mesh_lib.build_mesh(shape_of(fsdp=4, tensor=2))
  name = '__layer_stack_no_per_layer/mlp/down'
  params = {name: structs(w=(3, 32, 15))}
  rules = {'mlp/down/w': axis}
  if fits:
    assert mesh_lib.check_rules('student', mesh, params, rules)
    assert specs(mesh, params, rules)[name]['w'] == P(None, 'tensor', None)
  else:
    with pytest.raises(checks.ConfigError, match=(
        rf'(axis {axis} of .*; got 2|got {axis}), shape=\(32, 15\)')):
      mesh_lib.check_rules('student', mesh, params, rules)


@pytest.mark.parametrize('sizes, axes', (
    ((8, 1, 1), mesh_lib.AXES),
    ((1, 1, 8), ()),
    ((2, 2, 2), ('replica', 'fsdp')),
    ((1, 4, 2), ('fsdp',)),
    ((4, 1, 2), ('replica',)),
))
def test_tensor_is_left_to_the_compiler(sizes, axes):
  assert mesh_lib.manual_axes(mesh_lib.build_mesh(shape_of(*sizes))) == axes


def fake_mesh(sizes, processes, monkeypatch, mine):
  """A mesh whose devices claim to belong to these processes."""
  devices = np.array(
      [types.SimpleNamespace(process_index=p) for p in processes])
  monkeypatch.setattr(jax, 'process_index', lambda: mine)
  return types.SimpleNamespace(
      devices=devices.reshape(sizes), shape=dict(zip(mesh_lib.AXES, sizes)))


@pytest.mark.parametrize('sizes, processes, shares', (
    ((1, 4, 1), (0, 0, 1, 1), {0: (0, 2), 1: (1, 2)}),
    # The mesh may order devices differently from the processes.
    ((1, 4, 1), (1, 0, 1, 0), {1: (0, 2), 0: (1, 2)}),
    # Two processes along `tensor` read the same part.
    ((1, 2, 2), (0, 1, 2, 3), {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
    ((2, 1, 2), (0, 0, 0, 0), {0: (0, 1)}),
))
def test_processes_share_the_batch(sizes, processes, shares, monkeypatch):
  for process, share in shares.items():
    mesh = fake_mesh(sizes, processes, monkeypatch, process)
    assert mesh_lib.batch_share(mesh) == mesh_lib.Share(*share)


@pytest.mark.parametrize('sizes, processes', (
    ((1, 2, 3), (0, 0, 1, 1, 2, 2)),
    # Each has two shards and shares each of them with another process.
    ((1, 3, 2), (0, 1, 1, 2, 2, 0)),
    # No shard in common, and different numbers of them.
    ((1, 3, 1), (0, 0, 1)),
))
def test_processes_that_share_some_shards_are_refused(
    sizes, processes, monkeypatch):
  mesh = fake_mesh(sizes, processes, monkeypatch, 0)
  match = '^config.mesh.tensor must divide the number of devices of a process'
  with pytest.raises(checks.ConfigError, match=match):
    mesh_lib.batch_share(mesh)


def vit_program(**fields):
  """Returns the program of a run of two ViTs on 2 x 4 devices."""
  config = config_lib.base()
  config.batch_size = 16
  config.mesh = shape_of(fsdp=2, tensor=4)
  config.optimizer.ema_decay = 0.9
  for network in config.student, config.teacher:
    network.model = 'vit'
    network.options = dict(
        patch_size=4, width=16, depth=1, heads=4, mlp_ratio=2.0)
  config.update_from_flattened_dict(fields)
  batch = base.Batch(
      inputs=jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32),
      mask=jax.ShapeDtypeStruct((16,), bool),
      labels=jax.ShapeDtypeStruct((16,), jnp.int32))
  return program_lib.build_program(
      config, spec=batch, num_classes=16, has_teacher=True,
      mesh=mesh_lib.build_mesh(config.mesh))


def test_each_network_is_split_by_its_own_rules():
  # Rules of the config come before those of the model, which are mlp/up/*: -1
  # and mlp/down/w: -2.
  program = vit_program(**{
      'student.placement': {'mlp/up/w': -2, 'mlp/down/w': -1},
      'teacher.placement': {'mlp/*/w': None}})
  state, frozen = program.abstract_state, program.abstract_frozen
  adam, = (x for x in jax.tree.leaves(
      state.opt_state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(x, 'mu'))
  find = lambda params: tuple(
      params[f'block_0/{name}']['w'].sharding.spec
      for name in ('mlp/up', 'mlp/down', 'attn/query'))
  # [16, 32], [32, 16] and [16, 16].
  for params in state.params.student, state.ema, adam.mu.student:
    assert find(params) == (
        P('tensor', 'fsdp'), P('fsdp', 'tensor'), P('fsdp', 'tensor'))
  assert find(frozen.params) == (
      P(None, 'fsdp'), P('fsdp', None), P('fsdp', 'tensor'))


def test_teacher_is_stored_in_its_compute_dtype_and_student_in_float32():
  program = vit_program(**{'teacher.precision': 'bfloat16',
                           'student.precision': 'bfloat16'})
  dtypes = lambda tree: {x.dtype for x in jax.tree.leaves(tree)}
  assert dtypes(program.abstract_frozen.params) == {jnp.dtype('bfloat16')}
  assert dtypes(program.abstract_state.params) == {jnp.dtype('float32')}


@pytest.mark.parametrize('network', ('student', 'teacher'))
def test_program_refuses_rules_that_a_network_cannot_follow(network):
  options = f'{network}.options.width', f'{network}.options.heads'
  with pytest.raises(checks.ConfigError,
                     match=rf'must divide axis \S+ of \S+ of the {network};'):
    vit_program(**dict(zip(options, (18, 2))))


def test_no_device_holds_more_than_its_part():
  config = config_lib.base()
  config.batch_size = 16
  config.student.options = config.teacher.options = dict(hidden=(256, 256))
  config.optimizer.ema_decay = 0.9
  batch = base.Batch(
      inputs=jax.ShapeDtypeStruct((16, 64), jnp.float32),
      mask=jax.ShapeDtypeStruct((16,), bool),
      labels=jax.ShapeDtypeStruct((16,), jnp.int32))
  program = program_lib.build_program(
      config, spec=batch, num_classes=16, has_teacher=True,
      mesh=mesh_lib.build_mesh(config.mesh))
  compiled = program.init.lower(jax.random.key(0)).compile()
  state = program.init(jax.random.key(0))
  kept = state.params, state.opt_state, state.ema
  total = sum(x.nbytes for x in jax.tree.leaves(kept))
  for device in jax.devices():
    size = sum(
        shard.data.nbytes for leaf in jax.tree.leaves(kept)
        for shard in leaf.addressable_shards if shard.device == device)
    assert size <= 1.02 * total / 8
  # Parameters, two moments and the mean are split from the beginning.
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < total / 4
  kernel = program.abstract_frozen.params['hidden_0/linear']['w']
  assert kernel.sharding.spec == P(None, 'fsdp')
