"""Tests of what a network saves for its backward pass."""

import haiku as hk
import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import checks
from haikd.network import remat


class Block(hk.Module):
  """A linear layer and a sine, whose call takes more than arrays."""

  def __call__(self, x, scale, kind='sin', mask=None):
    x = hk.Linear(4)(x) * (1 if mask is None else mask)
    return jnp.sin(scale * x) if kind == 'sin' else x


def forward(x, policy, glob='block_*', kind='sin'):

  def network(x):
    for i in range(3):
      x = Block(name=f'block_{i}')(x, 2, kind=kind, mask=jnp.ones(4))
    return x

  if hk.running_init():
    return network(x)
  return remat.rematerialised(network, glob, policy)(x)


def counts(policy, glob='block_*'):
  """Returns the numbers of products and sines of a gradient."""
  net = hk.without_apply_rng(
      hk.transform(lambda x: forward(x, policy, glob)))
  x = jnp.ones((2, 4))
  params = net.init(jax.random.key(0), x)
  jaxpr = jax.make_jaxpr(jax.grad(lambda p: net.apply(p, x).sum()))(params)
  text = str(jaxpr)
  return text.count('dot_general'), text.count('= sin ')


def test_full_recomputes_products_and_dots_does_not():
  # Forward 3 products; backward 3 for the kernels and 2 for the inputs.
  assert counts('none') == (8, 3)
  # Every block, also the last, recomputes its product for the cosine.
  assert counts('full')[0] == 8 + 3
  assert counts('dots')[0] == 8
  assert counts('gathers')[0] == 8


def test_dots_saves_no_product_of_two_activations():

  class Scores(hk.Module):

    def __call__(self, x):
      x = hk.Linear(4)(x)
      return jnp.sin(jnp.einsum('bnd,bmd->bnm', x, x))

  def count(policy):

    def network(x):
      scores = lambda x: Scores()(x)
      return remat.rematerialised(scores, 'scores', policy)(x)

    net = hk.without_apply_rng(hk.transform(network))
    x = jnp.ones((2, 3, 4))
    params = {'scores/linear': dict(w=jnp.ones((4, 4)), b=jnp.ones(4))}
    return str(jax.make_jaxpr(jax.grad(
        lambda p: net.apply(p, x).sum()))(params)).count('dot_general')

  # Forward 2 products; backward 1 for the kernel and 2 for the scores. The
  # cosine needs the scores again.
  assert count('none') == 2 + 3
  assert count('dots') == 2 + 3 + 1
  assert count('full') == 2 + 3 + 2


def test_modules_outside_the_glob_are_not_wrapped():
  assert counts('full', 'block_1')[0] == 8 + 1


def test_the_function_is_wrapped_without_a_glob():
  assert counts('full', None)[0] == 8 + 3


def test_glob_that_matches_nothing_is_refused():
  assert counts('none', 'blok_*') == counts('none')
  with pytest.raises(checks.ConfigError,
                     match='^remat_modules must match a module that is '
                     r"called; got 'blok_\*'. Did you mean 'block_"):
    counts('full', 'blok_*')


@pytest.mark.parametrize('policy', ('none', 'gathers', 'dots', 'full'))
def test_gradient_is_the_same(policy):
  x = jax.random.normal(jax.random.key(1), (2, 4))
  loss = lambda policy: lambda params: jnp.sum(
      hk.without_apply_rng(hk.transform(lambda x: forward(x, policy))).apply(
          params, x)**2)
  params = hk.transform(lambda x: forward(x, 'none')).init(
      jax.random.key(0), x)
  expected = jax.grad(loss('none'))(params)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      jax.jit(jax.grad(loss(policy)))(params), expected)


def test_modules_inside_one_another_are_wrapped_once(monkeypatch):
  calls = []
  real = hk.remat
  monkeypatch.setattr(
      remat.hk, 'remat',
      lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))

  class Outer(hk.Module):

    def __call__(self, x):
      return Block(name='block_inner')(x, 2)

  def nested(x):
    network = lambda x: Outer(name='block_outer')(x)
    return remat.rematerialised(network, 'block_*', 'full')(x)

  net = hk.without_apply_rng(hk.transform(nested))
  params = {'block_outer/block_inner/linear': dict(
      w=jnp.ones((4, 4)), b=jnp.ones(4))}
  net.apply(params, jnp.ones((2, 4)))
  assert len(calls) == 1


def test_gathers_alone_are_repeated():
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('x')

  class Gathering(hk.Module):

    def __call__(self, x):
      w = hk.get_parameter('w', (1, 8), init=jnp.ones)
      w = jax.lax.all_gather(w, 'x', axis=0, tiled=True)
      return jnp.sin(x @ w)

  def count(policy):

    def network(x):
      gathering = lambda x: Gathering(name='block')(x)
      return remat.rematerialised(gathering, 'block', policy)(x)

    net = hk.without_apply_rng(hk.transform(network))
    params = {'block': {'w': jnp.ones((8, 8))}}
    step = jax.shard_map(
        jax.grad(lambda p, x: net.apply(p, x).sum(), argnums=(0, 1)),
        mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec))
    text = str(jax.make_jaxpr(step)(params, jnp.ones((16, 8))))
    return text.count('= all_gather['), text.count('dot_general')

  assert count('none') == (1, 3)
  assert count('gathers') == (2, 3)
  assert count('full') == (2, 4)
