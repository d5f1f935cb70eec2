"""Tests of loops over parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import loops


def add(carry, part):
  total = carry + part['x']
  return total, dict(total=total, double=2 * part['x'])


@pytest.mark.parametrize('length', [1, 3])
def test_scan_parts_returns_what_a_scan_does(length):
  parts = dict(x=jnp.arange(1, length + 1))
  carry, outputs = loops.scan_parts(add, jnp.int32(10), parts)
  assert carry == 10 + length * (length + 1) // 2
  np.testing.assert_array_equal(outputs['total'], [11, 13, 16][:length])
  np.testing.assert_array_equal(outputs['double'], [2, 4, 6][:length])


@pytest.mark.parametrize('length,is_loop', [(1, False), (3, True)])
def test_scan_parts_of_one_part_is_no_loop(length, is_loop):
  parts = dict(x=jnp.arange(length))
  jaxpr = jax.make_jaxpr(loops.scan_parts, static_argnums=0)(
      add, jnp.int32(0), parts)
  assert ('scan' in str(jaxpr)) == is_loop
