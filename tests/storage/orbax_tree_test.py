"""Weights in trees that Orbax has saved, by any of its checkpointers."""

import collections

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from haikd import library  # noqa: F401  Registers all there is.
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.storage import orbax_tree

PARAMS = {'net/~/linear': dict(w=np.arange(6.0).reshape(2, 3), b=np.ones(3)),
          'x.y': dict(w=np.full(2, 7.0))}
STATE = {'net/norm/~/mean': dict(average=np.full(3, 2.0))}
Saved = collections.namedtuple('Saved', 'params state opt_state step')


def expected(state=None, params=None):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return base.Variables(*jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=device),
      (params or PARAMS, state or {})))


def save(path, tree, checkpointer=ocp.StandardCheckpointer, **options):
  with checkpointer(**options) as saver:
    saver.save(path.absolute(), tree)
  return f'orbax:{path}'


def assert_loads(init, state=None):
  orbax_tree.check('init', init, expected(state))
  loaded = orbax_tree.load('init', init, expected(state))
  jax.tree.map(np.testing.assert_array_equal, tuple(loaded),
               (PARAMS, state or {}))


@pytest.mark.parametrize('tree, part, state', (
    (PARAMS, '', None),
    # As Flax nests them: a module's path is that of its keys.
    ({'net': {'~': {'linear': PARAMS['net/~/linear']}}, 'x.y': PARAMS['x.y']},
     '', None),
    (dict(params=PARAMS, state=STATE), '', STATE),
    ((PARAMS, STATE), '', STATE), ((PARAMS, {}), '', None),
    (Saved(PARAMS, STATE, optax.adam(1.0).init(PARAMS), 3), '', STATE),
    (dict(ema=dict(of=PARAMS), step=3), '#ema/of', None)),
    ids=['params', 'nested', 'dict', 'tuple', 'no state', 'training', 'part'])
def test_a_tree_gives_parameters_and_state(tmp_path, tree, part, state):
  assert_loads(save(tmp_path / 'tree', tree) + part, state)


def test_other_checkpointers_have_the_same(tmp_path):
  init = save(tmp_path / 'old', jax.tree.map(
      lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS),
      ocp.PyTreeCheckpointer, use_ocdbt=False)
  assert_loads(init)
  with ocp.CheckpointManager(tmp_path / 'many') as manager:
    for step, tree in ((9, jax.tree.map(np.zeros_like, PARAMS)), (10, PARAMS)):
      manager.save(step, args=ocp.args.StandardSave(tree))
  assert_loads(f'orbax:{tmp_path}/many')
  with ocp.CheckpointManager(tmp_path / 'named') as manager:
    manager.save(1, args=ocp.args.Composite(
        a=ocp.args.StandardSave(PARAMS), b=ocp.args.StandardSave(PARAMS)))
  assert_loads(f'orbax:{tmp_path}/named/1/a')
  with pytest.raises(checks.DataError, match='which has a, b. Give the folder'):
    orbax_tree.check('init', f'orbax:{tmp_path}/named', expected())


def test_steps_of_a_manager_may_have_a_prefix(tmp_path):
  options = ocp.CheckpointManagerOptions(step_prefix='a_b')
  with ocp.CheckpointManager(tmp_path, options=options) as manager:
    for step, tree in ((9, jax.tree.map(np.zeros_like, PARAMS)), (10, PARAMS)):
      manager.save(step, args=ocp.args.StandardSave(tree))
  assert_loads(f'orbax:{tmp_path}')


@pytest.mark.parametrize('dtype', (np.int8, np.complex64, np.bool_))
def test_numbers_of_another_kind_are_refused(tmp_path, dtype):
  init = save(tmp_path / 'tree', jax.tree.map(
      lambda x: x.astype(dtype), PARAMS))
  with pytest.raises(checks.DataError, match=(
      f'must hold net/~/linear/b as float32, .* got {np.dtype(dtype)}. Save')):
    orbax_tree.check('init', init, expected())


def test_every_difference_is_listed(tmp_path):
  init = save(tmp_path / 'tree', {
      'net/~/linear': dict(w=np.ones((3, 2)), b=np.ones(3)),
      'c': dict(w=np.ones(1))})
  with pytest.raises(checks.DataError) as caught:
    orbax_tree.check('config.teacher.init', init, expected(STATE))
  message = str(caught.value)
  assert message.startswith('config.teacher.init must hold the parameters')
  assert 'net/~/linear/w float32[3, 2] instead of float32[2, 3]' in message
  assert 'no x.y/w float32[2]' in message
  assert 'no state:net/norm/~/mean/average float32[3]' in message
  assert 'and 1 more' in message  # A surplus c/w.


@pytest.mark.parametrize('name, match', (
    ('nothing', "must name a folder that Orbax has saved a tree in; got "
     ".*nothing', which has none"),
    ('tree#parms', "must name a part of the tree; got 'parms' in .* Did you "
     "mean 'params'"),
    ('broken', "must name a complete tree of Orbax; got")))
def test_what_is_no_tree_is_refused(tmp_path, name, match):
  save(tmp_path / 'tree', dict(params=dict(w=np.ones(2))))
  (tmp_path / 'broken').mkdir()
  (tmp_path / 'broken' / '_METADATA').write_text('{')
  with pytest.raises(checks.DataError, match=match):
    orbax_tree.check('init', f'orbax:{tmp_path}/{name}', expected())


def test_weights_by_the_command_line(run, tmp_path):
  """A teacher starts from a tree; other paths are put right or refused."""
  params, _ = hk.transform_with_state(
      lambda image: registry.models['mlp'].function(
          image, is_training=False, num_classes=3, hidden=(8, 8))
  ).init(jax.random.key(0), np.zeros((1, 4, 4, 1), np.float32))
  init = save(tmp_path / 'tree', dict(params=params, step=4))
  code, _, err = run(f'--config.teacher.init={init}', '--config.steps=2')
  assert code == 0, err
  assert 'config.teacher.init: params and state are read, and not step' in err
  code, _, err = run(f'--config.teacher.init={tmp_path}/tree', workdir='third')
  assert code == 2 and f"Set it to 'orbax:{tmp_path}/tree'" in err
  code, _, err = run('--config.teacher.init=torch:x.pt', workdir='third')
  assert code == 3 and 'begin with npz:, orbax:, hf: or gguf:' in err
