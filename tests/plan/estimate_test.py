"""Estimates: bounds and memory against numbers worked out by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import base
from haikd.core import memory
from haikd.engine import counting
from haikd.engine import peaks
from haikd.plan import compiling
from haikd.plan import estimate as estimate_lib
from haikd.plan import schedule

P = jax.sharding.PartitionSpec
AXES = ('replica', 'fsdp', 'tensor')
CHIP = peaks.Chip('test', flops=100.0, memory=10000.0, memory_rate=50.0,
                  link_rate=3.0, ring=4, network_rate=1.0)
MEMORY = compiling.Memory(arguments=4000, results=1000, scratch=2000, code=500)


def make_step(mesh_shape=(2, 4, 1)):
  mesh = jax.make_mesh(
      mesh_shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)

  def array(shape, *axes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(
        shape, dtype, sharding=jax.sharding.NamedSharding(mesh, P(*axes)))

  state = base.TrainState(
      step=array((), dtype=jnp.int32),
      params=base.Params({'w': array((8, 6), 'fsdp')}, {}),
      net_state={'mean': array((6,))},
      opt_state=(array((8, 6), 'fsdp'), array((8, 6), 'fsdp')),
      loss_scale=(),
      ema={'w': array((8, 6), 'fsdp')})
  frozen = base.Variables({'w': array((8, 6), None, dtype=jnp.bfloat16)},
                          {'mean': array((6,))})
  batch = base.Batch(array((32, 5), ('replica', 'fsdp')),
                     array((32,), ('replica', 'fsdp'), dtype=jnp.bool_))
  return compiling.Step(None, state, frozen, batch, mesh)


def compiled(**fields):
  counted = counting.Counted(flops=1000.0, bytes=100.0, traffic=(),
                             open_loops=0)
  values = dict(memory=MEMORY, missing=0.0, available=None, counted=counted,
                schedule=schedule.Schedule((), 0), seconds=1.0)
  return compiling.Compiled(**{**values, **fields})


def test_state_is_sorted_by_what_it_is_for():
  shard = 8 * 6 * 4 / 4
  assert estimate_lib.categories(make_step()) == dict(
      parameters=shard, optimizer=2 * shard, average=shard, other=4 + 6 * 4,
      teacher=8 * 6 * 2 + 6 * 4, batch=4 * (5 * 4 + 1))


def test_key_counts_its_words():
  key = jax.eval_shape(lambda: jax.random.key(0))
  assert memory.bytes_per_device(key) == 8  # Threefry's is two words.


def test_peak_and_margin():
  found = estimate_lib.estimate('t', make_step(), compiled(), CHIP)
  assert (found.peak, found.margin()) == (7500, 2500)
  assert (found.devices, found.batch_size, found.microbatch) == (8, 32, 4)


def test_refused_step_needs_what_there_is_and_what_is_missing():
  refused = compiled(memory=None, missing=300.0, available=9000.0,
                     schedule=None)
  found = estimate_lib.estimate('t', make_step(), refused, CHIP,
                                microbatches=2)
  assert (found.peak, found.available, found.margin()) == (9300, 9000, -300)
  assert found.memory is None and found.microbatch == 2


def sending(hidden):
  # Over fsdp, 45 bytes in all; over replica, 30, never hidden.
  return schedule.Schedule((
      schedule.Collective('all-gather', ('fsdp',), 2.0, 30.0, 15.0, hidden),
      schedule.Collective('reduce-scatter', ('fsdp',), 1.0, 30.0, 15.0, False),
      schedule.Collective('all-reduce', ('replica',), 1.0, 30.0, 30.0, False),
  ), 0)


def test_bounds():
  step = make_step()
  found = estimate_lib.estimate('t', step, compiled(schedule=sending(True)),
                                CHIP)
  # The update moves parameters, two moments and the mean, both ways.
  moved = 100 + 2 * 4 * 48
  assert found.bytes == moved
  assert found.seconds == dict(
      compute=10.0, memory=moved / 50, links=(45 + 30) / 3, network=0.0)
  assert (found.bound, found.binds) == (25.0, 'links')
  # 30 of 45 bytes are hidden: 15 + 30 are sent while nothing is multiplied.
  assert found.exposed == pytest.approx(max(25.0, 10.0 + 45 / 3))


def test_axes_have_their_own_part_that_is_hidden():
  found = estimate_lib.estimate(
      't', make_step(), compiled(schedule=sending(True)), CHIP)
  assert {x.axes: x.hidden for x in found.sent} == {
      'fsdp': 30 / 45, 'replica': 0}


def test_what_is_sent_comes_on_top_of_memory_where_that_is_slower():
  counted = counting.Counted(1000.0, 5000.0, (), 0)
  found = estimate_lib.estimate(
      't', make_step(), compiled(counted=counted, schedule=sending(False)),
      CHIP)
  memory = (5000 + 2 * 4 * 48) / 50
  assert (found.bound, found.binds) == (memory, 'memory')
  assert found.exposed == pytest.approx(memory + 75 / 3)


def test_what_is_hidden_takes_its_time_all_the_same():
  sent = schedule.Collective('all-gather', ('fsdp',), 1.0, 80.0, 60.0, True)
  found = estimate_lib.estimate(
      't', make_step(), compiled(schedule=schedule.Schedule((sent,), 0)), CHIP)
  assert found.bound == found.exposed == 60 / 3 > found.seconds['compute']


def test_what_is_not_hidden_adds_up():
  found = estimate_lib.estimate(
      't', make_step(), compiled(schedule=sending(False)), CHIP)
  assert found.exposed == pytest.approx(10.0 + 75 / 3)


def test_without_a_schedule_it_counts_what_was_asked_for():
  traffic = (counting.Traffic('all-gather', ('fsdp',), 3.0, 40.0, 30.0),)
  counted = counting.Counted(1000.0, 100.0, traffic, 0)
  found = estimate_lib.estimate(
      't', make_step(), compiled(schedule=None, counted=counted), CHIP)
  assert found.sent == (
      ('fsdp', 'links', {'all-gather': [3.0, 30.0]}, 30.0, None, 10.0),)
  assert found.exposed is None and found.bound == 10.0


def test_without_peaks_there_are_no_bounds():
  chip = peaks.Chip('cpu', None, None, None, None, 0, None)
  found = estimate_lib.estimate(
      't', make_step(), compiled(schedule=sending(True)), chip)
  assert found.bound is found.binds is found.exposed is None
  assert found.margin() is None and found.seconds['links'] is None
  assert found.seconds['network'] == 0.0


@pytest.mark.parametrize('asked, made, known', [
    (0, 2, 2), (3, 2, 3), (1, None, 1)])
def test_loops_of_unknown_length_are_told(asked, made, known):
  counted = counting.Counted(1.0, 1.0, (), asked)
  made = None if made is None else schedule.Schedule((), made)
  found = estimate_lib.estimate(
      't', make_step(), compiled(schedule=made, counted=counted), CHIP)
  assert found.open_loops == known


def slices(sides, number=1):
  """Returns fake devices `[number, *sides]` with coordinates."""
  devices = np.empty((number, *sides), object)
  for place in np.ndindex(devices.shape):
    devices[place] = types.SimpleNamespace(
        coords=(*place[1:], 0), slice_index=place[0])
  return devices


def mesh_of(devices, *shape):
  return types.SimpleNamespace(
      devices=devices.reshape(shape), axis_names=AXES)


@pytest.mark.parametrize('devices, shape, axes, over, rate', [
    # A whole side of 4 is a ring, with two links a chip along it.
    (slices((4, 8)), (4, 8, 1), ('replica',), 'links', 2 * 3),
    (slices((4, 8)), (4, 8, 1), ('fsdp',), 'links', 2 * 3),
    # Both sides: four links.
    (slices((4, 8)), (1, 32, 1), ('fsdp',), 'links', 4 * 3),
    # Half a side is a line, and so is a side of 6.
    (slices((4, 8)), (8, 4, 1), ('fsdp',), 'links', 3),
    (slices((4, 6)), (4, 6, 1), ('fsdp',), 'links', 3),
    # Over two slices each chip sends its share of what a slice sends.
    (slices((4, 8), 2), (2, 32, 1), ('replica',), 'network', 1),
    (slices((4, 8), 2), (2, 32, 1), ('replica', 'fsdp'), 'network', 32),
    (slices((4, 8), 2), (2, 32, 1), ('fsdp',), 'links', 4 * 3),
])
def test_rate_of_a_ring(devices, shape, axes, over, rate):
  mesh = mesh_of(devices, *shape)
  assert estimate_lib.rate_over(mesh, axes, CHIP) == (over, rate)


def test_devices_of_one_chip_use_its_memory():
  devices = np.array([types.SimpleNamespace(coords=(i // 2, 0, 0))
                      for i in range(8)])
  mesh = mesh_of(devices, 1, 4, 2)
  assert estimate_lib.rate_over(mesh, ('tensor',), CHIP) == ('links', 50)
  # Four chips are a ring of two links each.
  assert estimate_lib.rate_over(mesh, ('fsdp',), CHIP) == ('links', 2 * 3)


@pytest.mark.parametrize('shape, between', [
    ((2, 32, 1), ('replica',)), ((4, 16, 1), ('replica',)),
    ((1, 64, 1), ('fsdp',))])
def test_axes_between_slices(shape, between):
  mesh = mesh_of(slices((4, 8), 2), *shape)
  assert compiling.between_slices(mesh) == between


def test_gpus_of_one_host_use_links_and_others_the_network():
  devices = np.array([
      types.SimpleNamespace(process_index=i // 8) for i in range(16)])
  chip = CHIP._replace(ring=0)
  mesh = mesh_of(devices, 2, 8, 1)
  assert estimate_lib.rate_over(mesh, ('fsdp',), chip) == ('links', 3)
  assert estimate_lib.rate_over(mesh, ('replica',), chip) == ('network', 1)
