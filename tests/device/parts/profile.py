"""Where the time of the large step goes: a profile, and pieces timed alone."""

import jax
import jax.numpy as jnp
from parts import language
from parts import timing
from parts import trace

import haikd
from haikd import attention
from haikd.core import attention_mask
from haikd.core import base

_STEPS = 10


def run(report):
  """Adds all results.

  Args:
    report: where to.
  """
  size = language.sizes(report.tiny)
  for name, piece in (('attention', _attention), ('sort', _sort),
                      ('chunks', _chunks)):
    with report.result(name, seconds=8) as go:
      if go:
        piece(report, name, size)
  with report.result('ten_steps', seconds=15) as go:
    if go:
      _profile(report, size)


def _profile(report, size):
  step = language.Step(
      language.config_of(size), language.batch_of(size),
      num_classes=size.vocabulary).start()
  jax.block_until_ready(step(2))
  with trace.recorded(report.scratch):
    jax.block_until_ready(step(_STEPS))
  report.add('ten_steps', **trace.summarise(
      *trace.read(report.scratch), _STEPS))


def _attention(report, name, size):
  """Attention in blocks against `jax.nn.dot_product_attention`."""
  for side in ('student', 'teacher'):
    options = getattr(size, side)
    heads = options['heads']
    shape = (size.batch, size.length, heads, options['width'] // heads)
    query, key, value = (
        jax.random.normal(x, shape, jnp.bfloat16)
        for x in jax.random.split(jax.random.key(0), 3))
    scale = shape[-1]**-0.5

    def in_blocks(query, key, value, scale=scale):
      allowed = attention_mask.AttentionMask(causal=True)
      query = (query * scale).astype(query.dtype)
      return attention.attend(base.QueryKey(query, key, allowed), value)

    def library(kind):
      return lambda *x: jax.nn.dot_product_attention(
          *x, is_causal=True, implementation=kind)

    forms = dict(haikd=in_blocks, xla=library(None))
    if jax.default_backend() == 'gpu':
      forms['cudnn'] = library('cudnn')
    for direction in ('forward', 'both'):
      if side == 'teacher' and direction == 'both':
        continue  # It has no gradient.
      sides, errors = {}, {}
      for form, function in forms.items():
        call = jax.jit(function if direction == 'forward' else _both(function))
        try:
          jax.block_until_ready(call(query, key, value))
          sides[form] = timing.repeated(call, query, key, value)
        except Exception as err:  # Not every build has cuDNN.
          errors[form] = f'{type(err).__name__}: {err}'[:200]
      _add(report, f'{name}/{side}/{direction}', sides, errors=errors)


def _both(function):

  def total(*arrays):
    return jnp.sum(function(*arrays).astype(jnp.float32))

  return jax.grad(total, argnums=(0, 1, 2))


def _sort(report, name, size):
  """The order of positions, those that count first."""
  mask = jax.random.bernoulli(
      jax.random.key(0), 0.75, (size.batch * size.length,))
  by_sort = jax.jit(lambda mask: jnp.argsort(~mask, stable=True))

  @jax.jit
  def by_sum(mask):
    """Places by counting: what a sort of one bit comes down to."""
    real = jnp.cumsum(mask) - 1
    padding = jnp.cumsum(~mask) - 1 + jnp.sum(mask)
    places = jnp.where(mask, real, padding)
    return jnp.zeros_like(places).at[places].set(jnp.arange(mask.size))

  same = bool(jnp.all(by_sort(mask) == by_sum(mask)))
  _add(report, name, dict(
      haikd=timing.repeated(by_sort, mask),
      counting=timing.repeated(by_sum, mask)), same=same)


def _chunks(report, name, size):
  """The loss of logits in chunks, its gradient included, and its floor."""
  rows, classes = size.batch * size.length, size.vocabulary
  keys = jax.random.split(jax.random.key(0), 4)
  draw = lambda key, *shape: jax.random.normal(key, shape, jnp.bfloat16)
  sides = []
  for i, side in enumerate(('student', 'teacher')):
    width = getattr(size, side)['width']
    sides.append(base.LinearLogits(
        draw(keys[2 * i], rows, width),
        draw(keys[2 * i + 1], width, classes) * width**-0.5))
  mask = jnp.ones(rows, bool)

  @jax.jit
  def in_chunks(student, teacher):
    loss = lambda student: haikd.losses.kl_divergence(
        student, teacher, mask=mask).mean()
    return jax.grad(loss)(student)

  chunk = max(min(rows, 2**26 // classes), 1)

  @jax.jit
  def products(student, teacher):
    """The four products of each chunk and nothing else."""

    def body(carry, start):
      of = lambda x: jax.lax.dynamic_slice_in_dim(x.hidden, start, chunk)
      own, other = of(student), of(teacher)
      logits = own @ student.kernel + other @ teacher.kernel
      return carry + own.T @ logits, logits @ student.kernel.T

    starts = jnp.arange(0, rows - chunk + 1, chunk)
    return jax.lax.scan(body, jnp.zeros_like(student.kernel), starts)

  _add(report, name, dict(
      haikd=timing.repeated(in_chunks, *sides),
      products=timing.repeated(products, *sides)))


def _add(report, name, sides, **more):
  times = timing.interleaved(sides, rounds=3, seconds=0.2)
  report.add(
      name, ms={form: timing.median_ms(x) for form, x in times.items()},
      haikd_over={
          form: timing.ratio(times['haikd'], x)['median']
          for form, x in times.items() if form != 'haikd'
      }, **more)
