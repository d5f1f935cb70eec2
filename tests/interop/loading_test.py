"""Expected values are the tensors, cut and transposed in NumPy."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import interop
from haikd.core import checks
from haikd.engine import mesh as mesh_lib
from haikd.interop import loading
from haikd.interop import placing
from haikd.interop import tensors as tensors_lib

STACK = '__layer_stack_no_per_layer/block'
FIELD = 'config.student.init'


def load(toy, expected=None, options=None, **cut):
  options = dict(toy.options, **(options or {}))
  expected = expected or toy.expect(**options)
  return interop.load(FIELD, toy.init, expected, options=options, **cut).params


def query(toy, layer):
  return toy.tensors[f'h.{layer}.qkv.weight'][:16].T


def value(toy, layer):
  return toy.tensors[f'h.{layer}.qkv.weight'][32:].T


def test_parameters_are_their_tensors_bit_by_bit(toy):
  params = load(toy)
  assert len(jax.tree.leaves(params)) == 2 + 4 * 6
  np.testing.assert_array_equal(params['embed']['embeddings'],
                                toy.tensors['embed.weight'])
  for i in range(4):
    block = f'block_{i}'
    np.testing.assert_array_equal(params[f'{block}/attn/query']['w'],
                                  query(toy, i))
    np.testing.assert_array_equal(params[f'{block}/attn/value']['w'],
                                  value(toy, i))
    np.testing.assert_array_equal(params[f'{block}/mlp/up']['w'],
                                  toy.tensors[f'h.{i}.up.weight'].T)
    np.testing.assert_array_equal(params[f'{block}/mlp/up']['b'],
                                  toy.tensors[f'h.{i}.up.bias'])


def test_stack_has_layers_on_top_of_one_another(toy):
  params = load(toy, toy.expect(stacked=True))
  np.testing.assert_array_equal(
      params[f'{STACK}/attn/query']['w'],
      np.stack([query(toy, i) for i in range(4)]))
  np.testing.assert_array_equal(
      params[f'{STACK}/mlp/up']['b'],
      np.stack([toy.tensors[f'h.{i}.up.bias'] for i in range(4)]))


@pytest.mark.parametrize('stacked', (False, True))
def test_layers_are_those_that_are_named(toy, stacked):
  params = load(toy, toy.expect(stacked=stacked, depth=2), dict(depth=2),
                layers=(3, 1))
  actual = (params[f'{STACK}/attn/query']['w'] if stacked else
            [params[f'block_{i}/attn/query']['w'] for i in range(2)])
  np.testing.assert_array_equal(actual[0], query(toy, 3))
  np.testing.assert_array_equal(actual[1], query(toy, 1))


def test_narrower_network_takes_what_comes_first(toy):
  options = dict(width=8, heads=3, hidden=20)
  params = load(toy, options=options)
  np.testing.assert_array_equal(params['embed']['embeddings'],
                                toy.tensors['embed.weight'][:, :8])
  # Three heads of four features, from each third of the tensor.
  np.testing.assert_array_equal(params['block_1/attn/value']['w'],
                                value(toy, 1)[:8, :12])
  np.testing.assert_array_equal(params['block_1/attn/output']['w'],
                                toy.tensors['h.1.output.weight'].T[:12, :8])
  np.testing.assert_array_equal(params['block_1/mlp/up']['w'],
                                toy.tensors['h.1.up.weight'].T[:8, :20])


def test_kept_tokens_are_taken_in_their_order(toy):
  toy.tensors = toy.make_tensors(tied=False)
  toy.write(toy.tensors)
  ids, options = np.array([7, 0, 11]), dict(tied=False)
  params = load(toy, toy.expect(vocabulary=3, tied=False), options,
                kept_ids=ids)
  np.testing.assert_array_equal(params['embed']['embeddings'],
                                toy.tensors['embed.weight'][ids])
  np.testing.assert_array_equal(params['logits']['w'],
                                toy.tensors['head.weight'][ids].T)


@pytest.mark.parametrize('stored, dtype', (
    ('float32', 'bfloat16'), ('bfloat16', 'float32'), ('float16', 'float32')))
def test_numbers_are_cast(toy, stored, dtype):
  toy.write({name: x if x.dtype == int else x.astype(jnp.dtype(stored))
             for name, x in toy.tensors.items()})
  params = load(toy, toy.expect(dtype, stacked=True))
  expected = query(toy, 2).astype(jnp.dtype(stored)).astype(jnp.dtype(dtype))
  actual = params[f'{STACK}/attn/query']['w']
  assert actual.dtype == dtype
  np.testing.assert_array_equal(np.asarray(actual[2]), expected)


@pytest.mark.parametrize('block', (32, 2**22))
@pytest.mark.parametrize('sizes', ((1, 8, 1), (2, 2, 2), (8, 1, 1)))
@pytest.mark.parametrize('stacked', (False, True))
def test_placement_changes_no_number(toy, monkeypatch, block, sizes, stacked):
  monkeypatch.setattr(placing, '_BLOCK', block)
  mesh = mesh_lib.build_mesh(dict(zip(mesh_lib.AXES, sizes)))
  expected = toy.expect(stacked=stacked)
  rules = {'query/w': -1, 'up/w': -1, 'up/b': -1}
  where = mesh_lib.place(mesh, expected, rules)
  expected = mesh_lib.abstract(expected, where)
  actual = load(toy, expected)
  for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected.params)):
    assert x.sharding == y.sharding and x.shape == y.shape
  plain = load(toy, toy.expect(stacked=stacked))
  jax.tree.map(np.testing.assert_array_equal, actual, plain)


def test_stack_may_be_split_between_layers(toy):
  mesh = mesh_lib.build_mesh(dict(replica=2, fsdp=4, tensor=1))
  split = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(mesh_lib.FSDP))
  params = load(toy, toy.expect(stacked=True, place=lambda shape: split))
  np.testing.assert_array_equal(
      params[f'{STACK}/attn/query']['w'],
      np.stack([query(toy, i) for i in range(4)]))


def test_device_reads_its_shard_and_no_more(toy, monkeypatch):
  read, plain = [], placing.MappedPart.read
  monkeypatch.setattr(
      placing.MappedPart, 'read',
      lambda *args: read.append(plain(*args)) or read[-1])
  mesh = mesh_lib.build_mesh(dict(replica=2, fsdp=4, tensor=1))
  expected = toy.expect(stacked=True)
  expected = mesh_lib.abstract(expected, mesh_lib.place(mesh, expected, {}))
  load(toy, expected)
  # Replicas share what was read for one of them.
  sizes = [leaf.size for leaf in jax.tree.leaves(expected)]
  assert sum(x.size for x in read) == sum(sizes)
  assert max(x.size for x in read) <= max(sizes) / 4


def test_parameters_outlive_their_file(toy):
  params = load(toy)
  (toy.folder / 'model.safetensors').write_bytes(b'0' * 10**5)
  np.testing.assert_array_equal(params['norm']['scale'],
                                toy.tensors['norm.weight'])


def test_whatever_is_wrong_is_listed_and_nothing_read(toy, monkeypatch):
  def read(*unused):
    raise AssertionError('read')

  monkeypatch.setattr(tensors_lib.Safetensors, 'read', read)
  spoilt = dict(toy.tensors)
  del spoilt['h.2.output.weight']
  spoilt['adapter'] = np.zeros(3, np.float32)
  spoilt['norm.weight'] = np.zeros(17, np.float32)
  spoilt['h.1.up.bias'] = np.zeros(24, np.int8)
  toy.write(spoilt)
  with pytest.raises(checks.DataError) as error:
    load(toy)
  text = str(error.value)
  for part in ('no h.2.output.weight', 'a surplus adapter',
               r'norm.weight float32[17]', 'h.1.up.bias int8[24]',
               'Nothing was loaded', FIELD):
    assert part in text
  assert '\n' not in text


@pytest.mark.parametrize('change, match', (
    (lambda x: None, 'no h.1.up.bias. .* config is not that of these tensors'),
    (lambda x: x[:-1], 'does not give .* config is not that of these tensors'),
    (lambda x: x.astype(np.int8), 'quantised .* Fetch the weights that were q'),
))
def test_remedy_fits_what_is_wrong(toy, change, match):
  name = 'h.1.up.bias'
  changed = {**toy.tensors, name: change(toy.tensors[name])}
  toy.write({name: x for name, x in changed.items() if x is not None})
  with pytest.raises(checks.DataError, match=match):
    load(toy)


def test_options_are_blamed_where_they_differ(toy):
  with pytest.raises(checks.DataError,
                     match='Choose the config.student.options that the we'):
    load(toy, options=dict(hidden=25))


def test_surplus_tensors_may_be_ignored_by_their_names(toy):
  """A value head, as reinforcement learning leaves it, and one in each block.
  """
  extra = {'v_head.summary.weight': np.ones(3, np.float32)} | {
      f'h.{i}.gate.weight': np.ones(3, np.float32) for i in range(4)}
  toy.write({**toy.tensors, **extra})
  with pytest.raises(checks.DataError) as error:
    load(toy)
  globs = ('h.*.gate.weight', 'v_head.summary.weight')
  assert f'set config.student.init_options.ignore={globs}.' in str(error.value)
  params = load(toy, ignore=globs)
  np.testing.assert_array_equal(params['norm']['scale'],
                                toy.tensors['norm.weight'])


def test_only_what_is_unknown_may_be_ignored(toy):
  with pytest.raises(checks.ConfigError,
                     match=r"ignore must name .* got \['h.0.up.\*', 'width'\], "
                     'which are none. Remove them.'):
    load(toy, ignore=('h.0.up.*', 'width'))


@pytest.mark.parametrize('stored, dtype, value, match', (
    ('float32', 'float32', np.nan,
     'must hold finite numbers; got hf:.* with nan in h.2.up.weight. Fetch'),
    ('bfloat16', 'bfloat16', -np.inf, 'with -inf in h.2.up.weight. Fetch'),
    ('bfloat16', 'float16', 7e4,
     'with 70144.0 in h.2.up.weight, which float16 cannot hold. Set config.'
     "student.precision='bfloat16'"),
))
@pytest.mark.parametrize('stacked', (False, True))
def test_numbers_that_are_not_finite_are_named(
    toy, stored, dtype, value, match, stacked):
  """70144 is 7e4 in bfloat16; the largest number of float16 is 65504."""
  weight = toy.tensors['h.2.up.weight'].copy()
  weight[-1, -1] = value
  toy.write({name: x if x.dtype == int else x.astype(jnp.dtype(stored))
             for name, x in {**toy.tensors, 'h.2.up.weight': weight}.items()})
  with pytest.raises(checks.DataError, match=match):
    load(toy, toy.expect(dtype, stacked=stacked))


def test_largest_numbers_are_finite(toy):
  for dtype in ('float32', 'bfloat16', 'float16'):
    largest = jnp.finfo(dtype).max
    weight = np.full(toy.tensors['norm.weight'].shape, -largest, largest.dtype)
    toy.write({**toy.tensors, 'norm.weight': weight})
    params = load(toy, toy.expect(dtype))
    np.testing.assert_array_equal(
        np.asarray(params['norm']['scale'], np.float32), np.float32(weight))


def test_long_lists_are_cut(toy):
  toy.write({'embed.weight': toy.tensors['embed.weight']})
  # 1 + 4 x 6 parameters miss a tensor; query, key and value share one.
  with pytest.raises(checks.DataError, match=r'and \d+ more'):
    load(toy)


def test_parameter_that_no_rule_knows_is_named(toy):
  expected = toy.expect()
  expected.params['gate'] = dict(w=expected.params['norm']['scale'])
  with pytest.raises(checks.DataError, match=r'nothing for gate/w float32\['):
    load(toy, expected)


@pytest.mark.parametrize('options, cut, match', (
    (dict(depth=2), {},
     'config.student.options.depth must be 4, .* got 2. Set '
     'config.student.init_layers to the 2 layers'),
    (dict(depth=2), dict(layers=(0, 4)),
     r'config.student.init_layers must be .* from 0 to 3; got \(0, 4\)'),
    (dict(depth=2), dict(layers=(0,)), 'must be 2 numbers'),
    (dict(head_size=8), {},
     'config.student.options must give the heads of hf:.*/toy, with '
     'head_size=4 and 1 heads .*got head_size=8 and 1.'),
    ({}, dict(kept_ids=[0, 12]),
     'kept_ids must be ids of the 12 tokens of hf:.*; got 2 ids from 0 to 12'),
    ({}, dict(kept_ids=[0, 1]),
     r'config.student.init must have the 12 tokens of the network; got '
     r'hf:.*/toy with 12, of which 2 are kept\.'),
    (dict(vocabulary=13), {}, r'the 13 tokens of .* with 12\.'),
    (dict(vocabulary=11), {}, r'the 11 tokens of .* with 12\.'),
))
def test_networks_that_are_no_part_are_refused(toy, options, cut, match):
  with pytest.raises(checks.ConfigError, match=match):
    load(toy, toy.expect(**{**options, 'heads': 4}), options, **cut)


def check(toy, expected, options, **cut):
  interop.check(FIELD, toy.init, expected, options=dict(toy.options, **options),
                **cut)


def test_check_reads_no_tensor(toy, monkeypatch):
  def read(*unused):
    raise AssertionError('read')

  monkeypatch.setattr(tensors_lib.Safetensors, 'read', read)
  check(toy, toy.expect(), {})
  check(toy, toy.expect(depth=2, vocabulary=3), dict(depth=2), layers=(3, 1),
        kept_ids=[7, 0, 11])


@pytest.mark.parametrize('shapes, options, cut, kind, match', (
    (dict(depth=2), dict(depth=2), {}, checks.ConfigError, 'init_layers'),
    ({}, {}, dict(kept_ids=[0, 12]), checks.ConfigError, 'kept_ids must be'),
    (dict(head_size=8), dict(head_size=8), {}, checks.ConfigError,
     'got head_size=8'),
    (dict(hidden=25), dict(hidden=25), {}, checks.DataError,
     'does not give block/'),
))
def test_check_refuses_what_load_does(toy, shapes, options, cut, kind, match):
  with pytest.raises(kind, match=match) as checked:
    check(toy, toy.expect(**shapes), options, **cut)
  with pytest.raises(kind) as loaded:
    load(toy, toy.expect(**shapes), options, **cut)
  assert str(checked.value) == str(loaded.value)


@pytest.mark.parametrize('larger', (dict(hidden=25), dict(width=20, heads=5)))
def test_larger_networks_are_refused(toy, larger):
  with pytest.raises(checks.DataError, match='does not give block/'):
    load(toy, options=larger)


def test_only_axes_that_an_option_reduces_are_cut(toy):
  # 20 of 24 hidden units may be taken; the 16 features may not be cut to 15.
  expected = toy.expect(hidden=20)
  place = expected.params['norm']['scale'].sharding
  expected.params['norm'] = dict(
      scale=jax.ShapeDtypeStruct((15,), np.float32, sharding=place))
  with pytest.raises(checks.DataError, match=r'norm/scale \[15\]'):
    load(toy, expected, dict(hidden=20))


def test_bar_is_shown_in_a_terminal_only(toy, monkeypatch, capsys):
  monkeypatch.setattr(loading, '_BAR_DELAY', 0)
  load(toy)
  assert not capsys.readouterr().err
  monkeypatch.setenv('FORCE_COLOR', '1')
  load(toy)
  assert f'reading {FIELD}' in capsys.readouterr().err


def memory(tmp_path, *args):
  script = pathlib.Path(__file__).with_name('measure_memory.py')
  out = subprocess.run([sys.executable, script, str(tmp_path), *args],
                       capture_output=True, text=True, check=True).stdout
  result = json.loads(out)
  return result['extra'] / result['largest']


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('stacked, stored, loaded', (
    ('True', 'float32', 'bfloat16'), ('False', 'bfloat16', 'float32')))
def test_memory_is_less_than_the_largest_tensor(tmp_path, stacked, stored,
                                                loaded):
  assert memory(tmp_path, '200', stacked, stored, loaded) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize('stacked', ('True', 'False'))
@pytest.mark.parametrize('stored, loaded', (
    ('float32', 'bfloat16'), ('bfloat16', 'float32'), ('float32', 'float32')))
def test_memory_stays_flat(tmp_path, stacked, stored, loaded):
  assert memory(tmp_path, '400', stacked, stored, loaded) < 1.2
