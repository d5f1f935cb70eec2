"""The hash of arrays does not depend on their sharding."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.storage import fingerprint


def test_hash_is_of_names_dtypes_shapes_and_values():
  tree = {'a': {'w': np.arange(6.0, dtype=np.float32)}, 'b': {'w': np.ones(2)}}
  same = collections.OrderedDict(
      b={'w': np.ones(2)}, a={'w': jnp.arange(6.0)})
  assert fingerprint.tree_hash(tree) == fingerprint.tree_hash(same)
  others = [
      {**tree, 'b': {'w': np.ones(2) + 1e-15}},
      {**tree, 'b': {'v': np.ones(2)}},
      {**tree, 'b': {'w': np.ones((2, 1))}},
      {**tree, 'a': {'w': np.arange(6.0, dtype=np.float32).view(np.int32)}},
      {**tree, 'a': {'w': np.float32([1, 0, 2, 3, 4, 5])}},
      {'a': tree['b'], 'b': tree['a']},
  ]
  hashes = {fingerprint.tree_hash(x) for x in (tree, *others)}
  assert len(hashes) == len(others) + 1


@pytest.mark.parametrize('dtype', ('float32', 'bfloat16', 'bool', 'int8'))
@pytest.mark.parametrize('spec', ((None, 'x'), ('x', None), ('x', 'y')))
def test_hash_does_not_depend_on_devices(dtype, spec):
  mesh = jax.make_mesh((4, 2), ('x', 'y'),
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)
  array = jnp.asarray(np.random.RandomState(0).randn(8, 12) * 100).astype(dtype)
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  sharded = jax.device_put(array, sharding)
  assert fingerprint.tree_hash([array]) == fingerprint.tree_hash([sharded])


@pytest.mark.parametrize('shape', ((), (3,), (4, 150, 200), (0, 3)))
@pytest.mark.parametrize('dtype', (
    'float32', 'bfloat16', 'float16', 'bool', 'int8', 'float64'))
def test_hash_of_the_host_is_that_of_a_program(dtype, shape, monkeypatch):
  """Small arrays are hashed without a program, which would be compiled."""
  values = np.random.RandomState(0).randn(*shape) * 100
  array = np.asarray(values).astype(jnp.dtype(dtype))
  trees = [[array], [jnp.asarray(array) if dtype != 'float64' else array]]
  with monkeypatch.context() as patch:
    patch.setattr(fingerprint, '_sums_on_devices', None)
    hashes = set(map(fingerprint.tree_hash, trees))
  monkeypatch.setattr(fingerprint, '_SMALL', -1)
  assert {fingerprint.tree_hash(tree) for tree in trees} == hashes
  assert len(hashes) == 1


@pytest.mark.parametrize('small', (2**20, -1))
@pytest.mark.parametrize('dtype', ('float32', 'float64'))
def test_hash_does_not_depend_on_the_order_in_memory(dtype, small, monkeypatch):
  monkeypatch.setattr(fingerprint, '_SMALL', small)
  array = np.arange(6, dtype=dtype).reshape(2, 3)
  hashes = {fingerprint.tree_hash([x])
            for x in (array, np.asfortranarray(array))}
  assert len(hashes) == 1


def test_one_bit_in_a_million_changes_the_hash():
  one = np.zeros((1000, 1000), np.float32)
  other = one.copy()
  other[777, 333] = np.float32(1e-45)
  assert fingerprint.tree_hash([one]) != fingerprint.tree_hash([other])


def test_transposed_arrays_differ():
  one = np.zeros((4, 4), np.float32)
  one[1, 2] = 1
  assert fingerprint.tree_hash([one]) != fingerprint.tree_hash([one.T.copy()])


@pytest.mark.parametrize('dtype', ('float32', 'float64'))
def test_swapping_any_two_numbers_changes_the_hash(dtype):
  array = np.arange(24, dtype=dtype).reshape(2, 3, 4)
  hashes = {fingerprint.tree_hash([array])}
  pairs = list(itertools.combinations(range(24), 2))
  for i, j in pairs:
    other = array.ravel().copy()
    other[[i, j]] = other[[j, i]]
    hashes.add(fingerprint.tree_hash([other.reshape(array.shape)]))
  assert len(hashes) == 1 + len(pairs)


def test_keys_are_distinguished_by_their_data():
  keys = [jax.random.key(0), jax.random.key(1), jax.random.split(
      jax.random.key(0)), jax.random.key(0, impl='rbg')]
  assert len({fingerprint.tree_hash([key]) for key in keys}) == 4
  assert fingerprint.tree_hash([jax.random.key(0)]) == fingerprint.tree_hash(
      [jax.random.key(0)])
