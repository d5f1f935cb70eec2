"""A kernel that is a table is the array it stands for."""

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import transposed

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)
KERNEL = transposed.Transposed(TABLE)


def test_it_is_the_transpose_to_numpy_and_jax():
  assert KERNEL.shape == (3, 4) and KERNEL.ndim == 2
  assert KERNEL.dtype == np.float32
  for got in (np.asarray(KERNEL), jnp.asarray(KERNEL), jnp.ones(()) * KERNEL):
    np.testing.assert_array_equal(got, TABLE.T)
  np.testing.assert_array_equal(KERNEL[:, :2], TABLE.T[:, :2])
  np.testing.assert_array_equal(jnp.ones((2, 3)) @ KERNEL,
                                np.ones((2, 3)) @ TABLE.T)
  assert KERNEL.astype(jnp.bfloat16).dtype == jnp.bfloat16
  assert not np.shares_memory(np.array(KERNEL, copy=True), TABLE)


def test_its_shape_is_known_without_an_array():
  abstract = jax.eval_shape(lambda x: base.LinearLogits(
      jnp.ones((5, 3)), transposed.Transposed(x)), TABLE)
  assert abstract.shape == (5, 4)


def test_a_function_of_kernels_keeps_their_form():
  first = lambda kernel: kernel[:, :2]
  for kernel in (jnp.asarray(TABLE.T), KERNEL):
    got = transposed.over_kernel(first, kernel)
    assert isinstance(got, transposed.Transposed) == (kernel is KERNEL)
    np.testing.assert_array_equal(jnp.asarray(got), TABLE.T[:, :2])
