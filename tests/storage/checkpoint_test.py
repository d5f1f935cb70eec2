"""Checkpoints: every bit, other devices, kills, and what is refused."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.engine import optimizer
from haikd.network import precision
from haikd.storage import checkpoint
from haikd.storage import checkpointer as checkpointer_lib
from haikd.storage import checksums
from haikd.storage import one_file
from haikd.storage import step_folder


@pytest.fixture(params=['one file', 'orbax'])
def way(request, monkeypatch):
  """Saves states in either of the two ways."""
  if request.param == 'orbax':
    monkeypatch.setattr(one_file, 'LIMIT', 0)
  return request.param


def make_state(name='adamw', width=3, ema=True, **changes):
  """Returns a state with every kind of leaf and of empty node."""
  key = jax.random.key(0)
  student = {
      'net/~/linear.0': {
          'w': jax.random.normal(key, (4, width)),
          'b': jnp.zeros(width)
      },
      'net/norm': {
          'scale': jnp.full((1, width), 0.1, jnp.bfloat16)
      }
  }
  align = {'features': {0: {'linear': {'w': jnp.eye(2)}}}}
  params = base.Params(student, align)
  fields = config_lib.optimizer()
  fields.update(name=name, clip_norm=1.0, weight_decay=0.1)
  state = base.TrainState(
      step=jnp.int32(7),
      params=params,
      net_state={
          'batch_norm/~/mean_ema': {
              'average': jnp.array([jnp.nan, -0.0, 1e-40]),
              'counter': jnp.int32(3),
              'seen': jnp.array([True, False]),
          },
          'dropout': {
              'raw': jax.random.key_data(key),
              'key': jax.random.split(key),
          }
      },
      opt_state=optimizer.build_optimizer(fields, 10).init(params),
      loss_scale=precision.initial_loss_scale('float16'),
      ema=jax.tree.map(lambda x: x + 1, student) if ema else None)
  return state._replace(**changes)


def abstract(state):
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state)


def raw(leaf):
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf).tobytes()


def assert_same_bits(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype, path
    assert a.shape == b.shape, path
    assert raw(a) == raw(b), path


def save(workdir, *states, keep=2, **metadata):
  with checkpointer_lib.Checkpointer(workdir, keep=keep) as checkpointer:
    for step, state in states:
      checkpointer.save(step, state, {'next_index': step}, metadata)


def restore(workdir, template):
  with checkpointer_lib.Checkpointer(workdir, keep=2) as checkpointer:
    return checkpointer.restore(abstract(template))


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'adafactor', 'muon'])
def test_every_bit_comes_back(tmp_path, way, name):
  state = make_state(name)
  save(tmp_path, (7, state), teacher='abc', seconds=1.5)
  folder = tmp_path / 'checkpoints' / '7' / 'state'
  assert (folder / 'leaves.safetensors').exists() == (way == 'one file')
  actual, iterator, metadata = restore(tmp_path, state)
  assert_same_bits(actual, state)
  assert isinstance(actual.loss_scale, precision.DynamicLossScale)
  assert iterator == {'next_index': 7}
  assert metadata == {'teacher': 'abc', 'seconds': 1.5}


def test_without_a_checkpoint_restore_returns_none(tmp_path):
  assert restore(tmp_path, make_state()) is None
  assert not checkpoint.has_checkpoint(tmp_path)


def test_the_newest_is_restored_and_old_ones_are_removed(tmp_path, way):
  states = [(step, make_state(step=jnp.int32(step))) for step in (8, 9, 10)]
  save(tmp_path, *states, keep=2)
  assert restore(tmp_path, states[0][1])[0].step == 10
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == [
      '10', '9']


def test_a_donated_state_is_saved_as_it_was(tmp_path, way):
  # The next step writes into the same buffers while they are saved.
  step = jax.jit(
      lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  state = base.TrainState(
      step=jnp.int32(0),
      params=base.Params({'net': {'w': jnp.zeros((512, 512))}}, {}),
      net_state={}, opt_state=(), loss_scale=(), ema=None)
  template = abstract(state)
  for i in range(1, 9):
    workdir = tmp_path / str(i)
    with checkpointer_lib.Checkpointer(workdir, keep=1) as checkpointer:
      state = step(state)
      jax.block_until_ready(state)
      checkpointer.save(i, state, {}, {})
      state = step(state)
      state = jax.block_until_ready(step(state))
    with checkpointer_lib.Checkpointer(workdir, keep=1) as checkpointer:
      saved, _, _ = checkpointer.restore(template)
    assert saved.step == 3 * i - 2
    np.testing.assert_array_equal(
        saved.params.student['net']['w'], np.full((512, 512), 3 * i - 2))


def test_latest_step_is_that_of_a_complete_checkpoint(tmp_path):
  with checkpointer_lib.Checkpointer(tmp_path, keep=2) as checkpointer:
    assert checkpointer.latest_step() is None
    checkpointer.save(3, make_state(), {}, {})
    checkpointer.wait()
    assert checkpointer.latest_step() == 3


def test_unfinished_checkpoint_of_a_kill_is_removed(tmp_path):
  save(tmp_path, (9, make_state()))
  folder = tmp_path / 'checkpoints' / '9'
  unfinished = folder.rename(folder.with_name('9.haikd-saving'))
  assert not checkpoint.has_checkpoint(tmp_path)
  save(tmp_path, (7, make_state()))
  assert not unfinished.exists()
  assert restore(tmp_path, make_state())[0].step == 7


def test_what_others_have_written_is_left_alone_and_said(tmp_path, caplog):
  """A step of another's, and a save of another's that was not finished."""
  theirs = [tmp_path / 'checkpoints' / name / 'file' for name in (
      '99', '8.orbax-checkpoint-tmp', 'x8.haikd-saving', '8.haikd-saving-1',
      'notes')]
  for path in theirs:
    path.parent.mkdir(parents=True)
    path.write_text('theirs')
  with caplog.at_level('INFO', 'haikd'):
    for step in (7, 8, 9):  # The first of them is removed, for the last.
      save(tmp_path, (step, make_state(step=jnp.int32(step))))
  assert restore(tmp_path, make_state())[0].step == 9
  assert [path.read_text() for path in theirs] == ['theirs'] * 5
  assert sorted(x.name for x in (tmp_path / 'checkpoints').iterdir()) == [
      '8', '8.haikd-saving-1', '8.orbax-checkpoint-tmp', '9', '99', 'notes',
      'x8.haikd-saving']
  assert f'{theirs[0].parent} is left alone, since this run did' in caplog.text
  with pytest.raises(checks.DataError, match='room for the checkpoint of step '
                     '99; got .*/99, which this run did not write. Move it'):
    save(tmp_path, (99, make_state()))


DEVICES = textwrap.dedent("""
    import sys
    import jax
    import jax.numpy as jnp
    import numpy as np
    from haikd.core import base
    from haikd.storage import checkpoint
    from haikd.storage import checkpointer as checkpointer_lib
    from haikd.storage import one_file

    P = jax.sharding.PartitionSpec
    workdir, mode, limit = sys.argv[1:]
    one_file.LIMIT = int(limit)
    count = jax.device_count()
    mesh = jax.make_mesh(
        (count,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
    values = {
        'w': np.random.RandomState(0).randn(16, 8).astype(np.float32),
        'h': np.random.RandomState(1).randn(8, 16).astype(jnp.bfloat16),
        'n': np.arange(8, dtype=np.int32),
        's': np.float32(3.0),
    }
    if one_file.LIMIT:  # Orbax refuses arrays without elements.
      values['e'] = np.zeros((0, 8), np.float16)
    specs = {'w': P('fsdp'), 'h': P(None, 'fsdp'), 'n': P('fsdp'), 's': P(),
             'e': P()}
    place = lambda k: jax.sharding.NamedSharding(mesh, specs[k])

    def state(make):
      return base.TrainState(
          jnp.int32(1), base.Params({'net': {k: make(k) for k in values}}, {}),
          {}, (), (), None)

    with checkpointer_lib.Checkpointer(workdir, keep=1) as checkpointer:
      if mode == 'save':
        checkpointer.save(
            1, state(lambda k: jax.device_put(values[k], place(k))), {}, {})
      else:
        template = state(lambda k: jax.ShapeDtypeStruct(
            values[k].shape, values[k].dtype, sharding=place(k)))
        template = template._replace(step=jax.ShapeDtypeStruct(
            (), jnp.int32, sharding=jax.sharding.NamedSharding(mesh, P())))
        net = checkpointer.restore(template)[0].params.student['net']
        for k, value in values.items():
          assert net[k].sharding.is_equivalent_to(place(k), value.ndim), k
          assert len(net[k].sharding.device_set) == count
          assert np.asarray(net[k]).tobytes() == value.tobytes(), k
        loaded, _ = checkpoint.load_network(workdir)
        assert all(loaded['net'][k].tobytes() == values[k].tobytes()
                   for k in values)
    print('done')
""")


def run(script, *args, devices=1):
  flags = (os.environ['XLA_FLAGS'] +
           f' --xla_force_host_platform_device_count={devices}')
  return subprocess.run([sys.executable, '-c', script, *map(str, args)],
                        capture_output=True,
                        text=True,
                        env={**os.environ, 'XLA_FLAGS': flags},
                        check=False)


@pytest.mark.parametrize('limit', (0, 10**9))
def test_arrays_come_back_on_another_number_of_devices(tmp_path, limit):
  for mode, devices in (('save', 8), ('load', 8), ('load', 2), ('load', 1)):
    result = run(DEVICES, tmp_path, mode, limit, devices=devices)
    # No message of Orbax reaches the user.
    assert (result.stdout, result.stderr) == ('done\n', '')


def test_another_shape_is_refused_by_name(tmp_path):
  save(tmp_path, (7, make_state(width=3)))
  with pytest.raises(
      checks.DataError,
      match=r'must hold the state of this run; got '
      r'params/student/net/norm/scale bfloat16\[1, 3\] instead of '
      r'bfloat16\[1, 5\], .* and \d+ more. Choose another --workdir'):
    restore(tmp_path, make_state(width=5))


def test_another_optimizer_is_refused_by_name(tmp_path):
  save(tmp_path, (7, make_state('adamw')))
  with pytest.raises(checks.DataError, match='no opt_state/.*trace'):
    restore(
        tmp_path,
        make_state(
            opt_state=optax.sgd(0.1, momentum=0.9).init(make_state().params)))


def test_another_dtype_is_refused(tmp_path):
  save(tmp_path, (7, make_state()))
  with pytest.raises(checks.DataError, match='step int32.* instead of uint32'):
    restore(tmp_path, make_state(step=jnp.uint32(7)))


def arrays_of(folder):
  """Returns the largest file with arrays of a checkpoint."""
  return max((path for path in (folder / 'state').rglob('*') if path.is_file()),
             key=lambda path: path.stat().st_size)


DAMAGES = dict(
    truncate=lambda folder: truncate(arrays_of(folder)),
    remove=lambda folder: arrays_of(folder).unlink(),
    metadata=lambda folder: truncate(folder / 'metadata' / 'metadata'),
    # JSON still, of another position in the data.
    bit=lambda folder: flip(folder / 'metadata' / 'metadata',
                            b'"next_index": 8'),
    checksums=lambda folder: truncate(folder / checksums.FILE),
    no_checksums=lambda folder: (folder / checksums.FILE).unlink())


def truncate(path):
  path.write_bytes(path.read_bytes()[:10])


def flip(path, content):
  """Flips the lowest bit of the last byte of a part of a file."""
  before = path.read_bytes()
  assert before.count(content) == 1
  path.write_bytes(before.replace(
      content, content[:-1] + bytes([content[-1] ^ 1])))


@pytest.mark.parametrize('damage', DAMAGES)
def test_instead_of_a_damaged_checkpoint_the_one_before_is_used(
    tmp_path, caplog, way, damage):
  save(tmp_path, (7, make_state()), (8, make_state(step=jnp.int32(8))))
  folder = tmp_path / 'checkpoints' / '8'
  DAMAGES[damage](folder)
  with caplog.at_level('INFO', 'haikd'):
    assert checkpoint.newest(tmp_path).name == '7'
  assert f'{folder} is left out, since it is damaged: ' in caplog.text
  assert restore(tmp_path, make_state())[0].step == 7
  # It is kept aside, and its step can be saved anew.
  aside = tmp_path / 'damaged_checkpoints'
  assert [path.name for path in aside.iterdir()] == ['8']
  for again in ('8-1', '8-2'):
    save(tmp_path, (8, make_state(step=jnp.int32(8))))
    DAMAGES[damage](folder)
    assert restore(tmp_path, make_state())[0].step == 7
    assert (aside / again).is_dir()


def test_where_all_are_damaged_nothing_begins_anew(tmp_path):
  save(tmp_path, (7, make_state()))
  folder = tmp_path / 'checkpoints' / '7'
  DAMAGES['truncate'](folder)
  assert not checkpoint.has_checkpoint(tmp_path)
  with pytest.raises(
      checks.DataError,
      match='^checkpoint must be as it was saved; got .*checkpoints/7, where '
      'state/.* has changed.* Bring back its files, or'):
    restore(tmp_path, make_state())
  assert folder.is_dir()


def test_where_a_damaged_one_cannot_be_set_aside_the_workdir_is_refused(
    tmp_path):
  save(tmp_path, (7, make_state()), (8, make_state(step=jnp.int32(8))))
  DAMAGES['truncate'](tmp_path / 'checkpoints' / '8')
  (tmp_path / 'damaged_checkpoints').write_text('a file')
  with pytest.raises(checks.DataError,
                     match='^--workdir must be a folder that can be written'):
    restore(tmp_path, make_state())


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_copy_from_a_bucket_that_cannot_be_read_is_refused(tmp_path, way):
  """It has no checksums."""
  save(tmp_path, (7, make_state()))
  folder = tmp_path / 'checkpoints' / '7'
  (folder / checksums.FILE).rename(folder / step_folder.COMMITTED)
  assert restore(tmp_path, make_state())[0].step == 7
  DAMAGES['truncate'](folder)
  with pytest.raises(
      checks.DataError,
      match='^checkpoint must be complete; got .*checkpoints/7 .*Remove that'):
    restore(tmp_path, make_state())


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'run').write_text('a file')
  with pytest.raises(checks.DataError,
                     match='^--workdir must be a folder that can be written'):
    save(tmp_path / 'run', (7, make_state()))


@pytest.mark.parametrize('kept', [True, False])
@pytest.mark.parametrize('folder', ['', 'checkpoints', 'checkpoints/7'])
def test_load_network_reads_only_the_student(tmp_path, way, kept, folder):
  state = make_state(ema=kept)
  save(tmp_path, (6, make_state(step=jnp.int32(6))), (7, state), seconds=2.5)
  params, net_state = checkpoint.load_network(tmp_path / folder)
  assert_same_bits(params, state.ema if kept else state.params.student)
  assert isinstance(params['net/norm']['scale'], np.ndarray)
  net_state['dropout']['key'] = jax.random.wrap_key_data(
      net_state['dropout']['key'])
  assert_same_bits(net_state, state.net_state)
  params, _ = checkpoint.load_network(tmp_path / folder, ema=False)
  assert_same_bits(params, state.params.student)
  assert checkpoint.metadata(tmp_path / folder) == {'seconds': 2.5}
  assert checkpoint.has_checkpoint(tmp_path / folder)


def test_load_network_without_state_gives_an_empty_one(tmp_path):
  save(tmp_path, (7, make_state(net_state={})))
  assert checkpoint.load_network(tmp_path)[1] == {}


def test_load_network_does_not_touch_the_optimizer(tmp_path, monkeypatch):
  save(tmp_path, (7, make_state()))
  read = []
  original = step_folder.read_leaves

  def record(folder, requested, **options):
    read.extend(requested)
    leaves = original(folder, requested, **options)
    assert set(leaves) == set(requested)
    return leaves

  monkeypatch.setattr(step_folder, 'read_leaves', record)
  checkpoint.load_network(tmp_path)
  assert {json.loads(name)[0] for name in read} == {'ema', 'net_state'}


@pytest.mark.parametrize('function, field', [
    (checkpoint.load_network, 'path'),
    (checkpoint.metadata, 'path'),
    (lambda path: checkpoint.metadata(path, field='--workdir'), '--workdir'),
    (lambda path: checkpoint.load_like('config.teacher.init', path, None),
     'config.teacher.init'),
])
def test_a_path_without_checkpoint_is_named(tmp_path, function, field):
  with pytest.raises(
      checks.DataError,
      match=f"^{field} must hold a checkpoint; got '{tmp_path}/none', which "
      'has none. Give'):
    function(tmp_path / 'none')


def test_load_like_checks_parameters_and_state(tmp_path):
  state = make_state(ema=False)
  save(tmp_path, (7, state))
  expected = jax.tree.map(
      jnp.asarray, base.Variables(state.params.student, state.net_state))
  loaded = checkpoint.load_like('config.student.init', tmp_path, expected)
  assert_same_bits(loaded.params, expected.params)
  shapes = {'batch_norm/~/mean_ema': {'average': jnp.zeros(4)}}
  for net_state, match in (
      ({}, 'config.student.init must hold .* got a surplus net_state/batch_n'),
      ({**state.net_state, 'more': {'x': jnp.zeros(2)}},
       r'got no net_state/more/x float32\[2\]'),
      ({**state.net_state, **shapes},
       r'float32\[3\] instead of float32\[4\]')):
    with pytest.raises(checks.DataError, match=match):
      checkpoint.load_like('config.student.init', tmp_path,
                           expected._replace(state=net_state))


@pytest.mark.parametrize('ema', (False, True))
def test_load_like_takes_the_running_mean_where_one_was_kept(tmp_path, ema):
  state = make_state(ema=ema)
  save(tmp_path, (7, state))
  expected = abstract(base.Variables(state.params.student, state.net_state))
  loaded = checkpoint.load_like('config.teacher.init', tmp_path, expected)
  assert_same_bits(loaded.params, state.ema if ema else state.params.student)
  assert_same_bits(loaded.state, state.net_state)


def test_load_like_uses_the_given_dtypes_and_shardings(tmp_path, way):
  state = make_state()
  save(tmp_path, (7, state))
  mesh = jax.make_mesh((4,), ('x',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  expected = abstract(base.Variables(state.params.student, state.net_state))
  expected.params['net/~/linear.0']['w'] = jax.ShapeDtypeStruct(
      (4, 3), jnp.bfloat16, sharding=place)
  loaded = checkpoint.load_like('config.teacher.init', tmp_path, expected)
  kernel = loaded.params['net/~/linear.0']['w']
  assert kernel.dtype == jnp.bfloat16 and kernel.sharding == place
  assert_same_bits(
      kernel, state.ema['net/~/linear.0']['w'].astype(jnp.bfloat16))


def test_check_teacher_compares_hashes():
  checkpoint.check_teacher(dict(teacher='abc'), 'abc')
  with pytest.raises(
      checks.DataError,
      match='^teacher must be the one .*; got none, and the checkpoint has '
      'abc. Choose another --workdir'):
    checkpoint.check_teacher(dict(teacher='abc'), '')


def test_check_vocabulary_compares_tokenizers():
  checkpoint.check_vocabulary(dict(vocabulary='abc'), 'abc')
  with pytest.raises(
      checks.DataError,
      match="^the data's tokenizer must be the one .*; got none, and the "
      'checkpoint has abc. Bring back'):
    checkpoint.check_vocabulary(dict(vocabulary='abc'), '')


@pytest.mark.parametrize('name, value', [
    ('iterator', 3), ('iterator.next_index', 'x'), ('iterator.next_index', -1),
    ('metadata', []), ('metadata.seconds', 'x'), ('metadata.evaluated', {}),
    ('metadata.best', 'x'), ('metadata.best', {}), ('metadata.rows', 1.5),
    *(('metadata.best', dict(metric='kl', step=7, value='0.1', since=0,
                             earlier=earlier))
      for earlier in ('', [[6, 0.5]], [['6', '0.5']], [[6, '0.5', 0]])),
    ('metadata.teacher', 3), ('metadata.config', 3), ('metadata.layers', 'ab'),
    ('metadata.rollbacks', None), ('metadata.phases', [1, 2]),
    ('metadata.phases', {'steps': 'x'}), ('best_step', 'x')])
def test_of_metadata_of_other_types_the_checkpoint_before_is_used(
    tmp_path, caplog, name, value):
  """Also if its checksum is right, as that of a copy from a bucket is."""
  state = make_state()
  save(tmp_path, (6, make_state(step=jnp.int32(6))), (7, state), teacher='',
       seconds=1.0, evaluated=True, rows=1, rollbacks=0, best=None, config={},
       layers=[], phases={'steps': 0.5})
  folder = tmp_path / 'checkpoints' / '7'
  assert restore(tmp_path, state)[0].step == 7
  path = folder / 'metadata' / 'metadata'
  saved = json.loads(path.read_text())
  *groups, last = name.split('.')
  place = saved
  for group in groups:
    place = place[group]
  place[last] = value
  path.write_text(json.dumps(saved))
  checksums.write(folder, {})
  with caplog.at_level('INFO', 'haikd'):
    assert restore(tmp_path, state)[0].step == 6
  assert f'{folder} is left out, since it is damaged: what is beside the ' in (
      caplog.text)
  assert f'arrays has {name}=' in caplog.text
  # In a bucket nothing is set aside: it is refused.
  with pytest.raises(checks.DataError, match=(
      rf'^checkpoint must have its metadata as it was saved; got {name}=')):
    step_folder.read_extra(tmp_path / 'damaged_checkpoints' / '7')
