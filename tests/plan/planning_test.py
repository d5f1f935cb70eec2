"""The plan as a whole: a tiny step on CPU devices, and one on a TPU's compiler.

The memory of a chip is made as small as the test needs it.
"""

import contextlib
import json
import os
import types

import jax
from jax import lax
import jax.numpy as jnp
import matplotlib.image
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.engine import peaks
from haikd.plan import compiling
from haikd.plan import picture
from haikd.plan import planning

P = jax.sharding.PartitionSpec
WIDTH, LAYERS = 256, 3


def build(config, devices):
  """Makes a step that gathers its layers one by one and takes a gradient."""
  mesh = jax.make_mesh((1, len(devices), 1), ('replica', 'fsdp', 'tensor'),
                       axis_types=(jax.sharding.AxisType.Auto,) * 3,
                       devices=devices)
  if config.batch_size % (len(devices) * config.microbatches):
    raise checks.ConfigError('the batch does not divide')

  def array(shape, *axes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(
        shape, dtype, sharding=jax.sharding.NamedSharding(mesh, P(*axes)))

  def layer(x, w):
    w = lax.all_gather(w, 'fsdp', axis=0, tiled=True)
    return jnp.tanh(x @ w), None

  if config.student.remat == 'full':
    layer = jax.checkpoint(layer)

  def local(w, x):
    def part(gradient, x):
      loss = lambda w: lax.scan(layer, x, w)[0].sum()
      return gradient + jax.grad(loss)(w), None

    parts = x.reshape(config.microbatches, -1, WIDTH)
    return lax.scan(part, jnp.zeros_like(w), parts)[0]

  gradient = jax.shard_map(
      local, mesh=mesh, in_specs=(P(None, 'fsdp'), P('fsdp')),
      out_specs=P(None, 'fsdp'))

  def step(state, frozen, batch):
    del frozen
    w = state.params.student
    w -= gradient(w, batch.inputs)
    params = state.params._replace(student=w)
    return state._replace(step=state.step + 1, params=params), {}

  size = config.batch_size
  state = base.TrainState(
      array((), dtype=jnp.int32),
      base.Params(array((LAYERS, WIDTH, WIDTH), None, 'fsdp'), {}), {}, (), (),
      None)
  batch = base.Batch(array((size, WIDTH), 'fsdp'),
                     array((size,), 'fsdp', dtype=jnp.bool_))
  return compiling.Step(jax.jit(step), state, None, batch, mesh)


@pytest.fixture(autouse=True)
def eight_devices():
  jax.devices()  # Else the first plan would ask for as many as it needs.


@pytest.fixture
def config():
  config = config_lib.base()
  config.batch_size, config.microbatches = 64, 2
  return config


@pytest.fixture
def memory(monkeypatch):
  def limit(size):
    chip = peaks.Chip('cpu', None, size, None, None, 0, None)
    monkeypatch.setattr(planning.chips, 'chip_of', lambda *_: chip)

  return limit


def test_plan_prints_and_writes(config, tmp_path, capsys):
  run = tmp_path / 'run'
  found = planning.plan(config, ['cpu:8', 'cpu:4'], run, build=build,
                        compiles=0)
  out = capsys.readouterr().out
  assert 'cpu:8: compiling, batch size 64 in 2 microbatches' in out
  [first, second] = json.loads((run / planning.FILE).read_text())
  assert (first['devices'], second['devices']) == (8, 4)
  assert first['state']['parameters'] == LAYERS * WIDTH**2 * 4 / 8
  # Gathered in each of two microbatches, and again for the way back.
  layer = WIDTH**2 * 4
  assert first['sent'][0]['kinds']['all-gather'][1] == pytest.approx(
      2 * LAYERS * layer * 7 / 8)
  # Three products a layer: forward, and back to both of its operands.
  assert first['flops'] == 3 * LAYERS * 2 * 8 * WIDTH**2
  assert found[0].bound is None and 'not known' in out
  assert matplotlib.image.imread(run / picture.FILE).ndim == 3


def test_programs_of_a_run_are_timed(run, tmp_path, capsys):
  code, out, err = run('--mode=plan', '--topology=cpu:2')
  assert (code, err) == (0, '')
  [written] = json.loads((tmp_path / 'run' / planning.FILE).read_text())
  names = [x['name'] for x in written['programs']]
  for name in ('training step of student', 'initialisation of student',
               'evaluation of student', 'evaluation of teacher'):
    assert names.count(name) == 1
    row, = (x for x in written['programs'] if x['name'] == name)
    assert min(row['trace'], row['lowering'], row['xla']) > 0
  assert 'cpu:2: program' in out and 'lowering, s' in out


def test_the_answer_comes_before_other_programs_compile(
    config, tmp_path, capsys, monkeypatch):
  seen = []

  def look(step, *, debug):
    del step, debug
    [written] = json.loads((tmp_path / planning.FILE).read_text())
    seen.append((written['devices'], written['programs'],
                 'per chip' in capsys.readouterr().out))

  monkeypatch.setattr(planning.compiling, 'compile_others', look)
  planning.plan(config, ['cpu:8'], tmp_path, build=build)
  [(devices, programs, is_shown)] = seen
  assert (devices, is_shown) == (8, True)
  assert [x['name'] for x in programs] == ['step']


def test_other_programs_are_written_before_the_search(
    config, memory, tmp_path, monkeypatch):
  names = []

  def look(*_, **__):
    [written] = json.loads((tmp_path / planning.FILE).read_text())
    names.extend(x['name'] for x in written['programs'])

  monkeypatch.setattr(
      planning.compiling, 'compile_others',
      lambda *_, **__: jax.jit(lambda x: x + 1).lower(1).compile())
  monkeypatch.setattr(planning.search, 'largest_microbatch', look)
  memory(2**30)
  planning.plan(config, ['cpu:8'], tmp_path, build=build)
  assert len(names) == 2


@pytest.mark.parametrize('compiles, available', ((0, None), (1, 1000.0)))
def test_other_programs_are_compiled_for_a_step_that_fits_alone(
    compiles, available, config, memory, tmp_path, monkeypatch):
  compiled = []
  monkeypatch.setattr(planning.compiling, 'compile_others',
                      lambda step, **_: compiled.append(step))
  memory(available)
  with contextlib.suppress(checks.DoesNotFitError):
    planning.plan(config, ['cpu:8'], tmp_path, build=build, compiles=compiles)
  assert not compiled


def test_evaluation_without_room_is_left_out():
  def refuse():
    raise jax.errors.JaxRuntimeError('Used 3.0G of 2.0G hbm')

  lowered = types.SimpleNamespace(compile=refuse)
  function = types.SimpleNamespace(lower=lambda *_: lowered)
  other = compiling.Other('student', function, ())
  compiling.compile_others(
      compiling.Step(None, None, None, None, None, (other,)))


def test_what_cannot_work_is_found_before_compiling(config, tmp_path, capsys):
  with pytest.raises(checks.ConfigError, match='does not divide'):
    planning.plan(config, ['cpu:8', 'cpu:3'], tmp_path, build=build)
  (tmp_path / 'file').touch()
  with pytest.raises(
      checks.DataError, match='--workdir must be a writable folder; got'):
    planning.plan(config, ['cpu:8'], tmp_path / 'file' / 'x', build=build)
  assert 'compiling' not in capsys.readouterr().out


def test_largest_microbatch_is_found_within_memory(config, memory, tmp_path,
                                                   capsys):
  config.microbatches, limit = 1, 2**21

  def peak(microbatch):
    changed = config_lib.ConfigDict(config).copy_and_resolve_references()
    changed.batch_size = microbatch * 8
    return planning.plan(changed, ['cpu:8'], tmp_path, build=build,
                         compiles=0)[0].peak

  memory(limit)
  capsys.readouterr()
  [found] = planning.plan(config, ['cpu:8'], tmp_path, build=build, compiles=4)
  assert found.microbatch < found.largest_microbatch
  # The table comes after the first compilation, the search after the table.
  before, _, after = capsys.readouterr().out.partition('needed, GiB')
  assert before.count('compiling, batch size') == 1
  assert 2 <= after.count('compiling, batch size') + 1 <= 5
  assert (f'the largest microbatch that fits is {found.largest_microbatch}\n'
          in after)
  [written] = json.loads((tmp_path / planning.FILE).read_text())
  assert written['largest_microbatch'] == found.largest_microbatch
  assert peak(found.largest_microbatch) <= limit
  memory(None)
  assert peak(2 * found.largest_microbatch) > limit


def test_step_that_does_not_fit_is_shown_then_refused(config, memory, tmp_path,
                                                      capsys):
  memory(1000.0)
  with pytest.raises(checks.DoesNotFitError,
                     match=r'cpu:8: .* GiB missing\. --config\.'):
    planning.plan(config, ['cpu:8'], tmp_path, build=build)
  [written] = json.loads((tmp_path / planning.FILE).read_text())
  assert written['margin'] < 0
  assert 'left, GiB' in capsys.readouterr().out


def test_remedy_that_fits_is_named(config, memory, tmp_path):
  config.microbatches, config.batch_size = 1, 8192
  [found] = planning.plan(config, ['cpu:8'], tmp_path, build=build, compiles=0)
  memory(found.peak - 1)
  with pytest.raises(checks.DoesNotFitError,
                     match=r'--config\.microbatches=1024 fits with'):
    planning.plan(config, ['cpu:8'], tmp_path, build=build)


def test_unknown_topology_stops_before_anything_is_compiled(config, tmp_path):
  with pytest.raises(checks.ConfigError, match='v5x'):
    planning.plan(config, ['cpu:8', 'v5x:2x2'], tmp_path, build=None)


@pytest.mark.parametrize('message, missing, available', [
    ('Used 20.00G of 15.75G hbm. Exceeded', 4.25 * 2**30, 15.75 * 2**30),
    ('memory required for HLO temporaries (1.5G) exceeds available HBM '
     '(512M).', 2**30, 2**29),
])
def test_shortage_is_read(message, missing, available):
  assert compiling.shortage(message) == (missing, available)


def test_other_errors_are_no_shortage():
  assert compiling.shortage('INVALID_ARGUMENT: used 3 of 4') is None


def test_quiet_hides_what_c_writes_and_gives_it_back(capfd):
  with compiling.quiet():
    os.write(2, b'noise')
  os.write(2, b'after')
  with compiling.quiet(debug=True):
    os.write(2, b', and asked for')
  assert capfd.readouterr().err == 'after, and asked for'


def test_what_the_user_set_stays(monkeypatch):
  monkeypatch.setenv('TPU_MIN_LOG_LEVEL', '0')
  compiling.prepare()
  assert os.environ['TPU_MIN_LOG_LEVEL'] == '0'


class TestTpu:
  """What the compiler for TPUs makes of it, where that is installed."""

  @pytest.fixture(autouse=True)
  def compiler(self):
    pytest.importorskip('libtpu')

  def test_small_slice(self, config, tmp_path, capfd):
    config.batch_size, config.microbatches = 64, 1
    [found] = planning.plan(config, ['v5e:2x2'], tmp_path, build=build,
                            compiles=0)
    assert found.devices == 4 and found.available == 15.75 * 2**30
    assert found.flops == 3 * LAYERS * 2 * 16 * WIDTH**2
    assert found.bound > 0 and found.binds in ('compute', 'memory', 'links')
    gathers = next(x for x in found.sent if x.axes == 'fsdp').kinds
    # This compiler multiplies in bfloat16, and gathers what it multiplies.
    layer = WIDTH**2 * 2
    assert gathers['all-gather'][1] >= LAYERS * layer * 3 / 4
    assert 0 <= found.sent[0].hidden <= 1
    assert not capfd.readouterr().err

  def test_refused_shape(self, config, tmp_path):
    with pytest.raises(checks.ConfigError, match='sides of a slice that is'):
      planning.plan(config, ['v5e:3x5'], tmp_path, build=build)
