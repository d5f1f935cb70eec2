"""Scans run only the iterations whose outputs are used."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.objective import trim_scans

LENGTH = 6


def loop(x, weights, reverse=False):
  """Returns the last carry and two outputs of each iteration."""

  def body(carry, weight):
    carry = jnp.tanh(carry @ weight)
    return carry, (carry, carry.sum())

  return lax.scan(body, x, weights, reverse=reverse)


def first(x, weights):
  return loop(x, weights)[1][0][1]


def first_of_both(x, weights):
  _, (values, sums) = loop(2 * x, weights)
  return {'value': values[:1] + 1, 'sum': sums[3]}


def last(x, weights):
  return loop(x, weights)[1][0][LENGTH - 1]


def carried(x, weights):
  final, (values, _) = loop(x, weights)
  return values[0], final


def all_outputs(x, weights):
  return loop(x, weights)[1][0].sum()


def backward(x, weights):
  return loop(x, weights, reverse=True)[1][0][1]


def indexed_by_input(x, weights):
  return loop(x, weights)[1][0][x.astype(int)[0, 0]]


def twice(x, weights):
  final, _ = loop(x, weights)
  return loop(final, weights)[1][1][1]


def nothing(x, weights):
  loop(x, weights)
  return x + 1


@pytest.mark.parametrize('function, lengths', (
    (first, [2]),
    (first_of_both, [4]),
    (last, [LENGTH]),
    (carried, [LENGTH]),
    (all_outputs, [LENGTH]),
    (backward, [LENGTH]),
    (indexed_by_input, [LENGTH]),
    (twice, [LENGTH, 2]),
    (nothing, []),
))
def test_results_are_the_same_after_fewer_iterations(function, lengths):
  rng = np.random.RandomState(0)
  args = jnp.asarray(rng.rand(2, 3)), jnp.asarray(rng.randn(LENGTH, 3, 3))
  needed = lambda *args: trim_scans.run_needed(function, *args)
  jaxpr = jax.make_jaxpr(needed)(*args)
  assert [eqn.params['length'] for eqn in jaxpr.eqns
          if eqn.primitive.name == 'scan'] == lengths
  for run in (needed, jax.jit(needed)):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
        run(*args), function(*args))
