"""Losses, pooling and steps of all models against the CPU backend.

In float32 they agree to 1e-5 of an array's largest number; in bfloat16 to the
distance of two neighbours; gradients are finite; two runs are bitwise equal, or
the operation is named that is not.
"""

import jax
import jax.numpy as jnp
import numpy as np
from parts import compare
from parts import families

import haikd
from haikd import align
from haikd import attention
from haikd.core import attention_mask
from haikd.core import base
from haikd.core import registry

# What the axes of an example become in the larger form, by their number.
_LARGER = {
    'attention': (4, 4, 256, 256),
    'embedding': (32, 8, 384),
    None: (8, 256, 1000),
}
_TINY = {
    'attention': (2, 2, 16, 16),
    'embedding': (4, 2, 12),
    None: (4, 8, 20),
}


def run(report):
  """Adds all results.

  Args:
    report: where to.
  """
  with jax.default_matmul_precision('highest'):
    for name, check in _checks(report.tiny):
      if report.wants(name):
        with report.result(name, seconds=2.0) as go:
          if go:
            check(report, name)


def _checks(tiny):
  """Yields (name, function of report and name)."""
  for loss in haikd.loss_names():
    entry = registry.losses[loss]
    if not (entry.example and entry.module.startswith('haikd.')):
      continue
    for size in ('example', 'larger'):
      for dtype in ('float32', 'bfloat16'):
        yield (f'loss/{loss}/{size}/{dtype}', _loss(entry, size, dtype, tiny))
  for loss in ('kl_divergence', 'cross_entropy'):
    for dtype in ('float32', 'bfloat16'):
      yield f'chunked/{loss}/{dtype}', _chunked(loss, dtype, tiny)
  for dtype in ('float32', 'bfloat16'):
    yield f'blocked/attention_transfer/{dtype}', _transfer(dtype, tiny)
    yield f'blocked/attend/{dtype}', _attend(dtype, tiny)
  for mode, size in (('VALID', 24), ('SAME', 20), ('ADAPTIVE', 24)):
    yield f'pooling/{mode}', _pooling(mode, size)
  exact = {}
  for dtype in ('float32', 'bfloat16'):
    for family in families.FAMILIES:
      yield (f'step/{family}/{dtype}', families.check(family, dtype, exact))


def _loss(entry, size, dtype, tiny):

  def check(report, name):
    example = entry.example
    if size == 'example':
      shapes = {key: (4, *shape[1:]) for key, shape in example.items()}
    else:
      sizes = _TINY if tiny else _LARGER
      larger = sizes.get(entry.on, sizes[None])
      # The mask and labels keep as many of the axes as in the example.
      shapes = {key: larger[:len(shape)] for key, shape in example.items()}
      if entry.on == 'attention':
        shapes['mask'] = (larger[0], larger[2])
    student, teacher, labels = _inputs(entry, shapes, dtype)
    mask = _mask(shapes['mask'])
    options = {} if labels is None else dict(labels=labels)

    def value(student, teacher):
      result = entry.function(student, teacher, mask=mask, **options)
      return result.total, result

    function = jax.value_and_grad(value, (0, 1), has_aux=True)
    compare.check(report, name, function, (student, teacher),
                  _tolerance(dtype))

  return check


def _inputs(entry, shapes, dtype):
  generator = np.random.default_rng(0)
  arrays = []
  for side in ('student', 'teacher'):
    array = generator.normal(size=shapes.get(side, shapes['student']))
    if entry.on == 'attention':
      array = np.exp(array) / np.exp(array).sum(-1, keepdims=True)
    arrays.append(jnp.asarray(array, dtype))
  labels = None
  if 'labels' in shapes:
    labels = generator.integers(0, shapes['student'][-1], shapes['labels'])
    labels = np.asarray(labels, np.int32)
  return *arrays, labels


def _mask(shape):
  """Returns padding on the right of rows of all lengths."""
  if len(shape) == 1:
    return np.arange(shape[0]) < max(shape[0] - 1, 1)
  lengths = np.resize([shape[1], shape[1] // 2 + 1, shape[1] - 1, 1], shape[0])
  return np.arange(shape[1]) < lengths[:, None]


def _tolerance(dtype):
  return compare.FLOAT32 if dtype == 'float32' else compare.BFLOAT16


def _chunked(loss, dtype, tiny):
  """Logits a chunk at a time: on the device, and against whole ones."""
  rows, length, width, classes = ((2, 16, 8, 64) if tiny else
                                  (8, 512, 128, 50_000))

  def check(report, name):
    keys = jax.random.split(jax.random.key(0), 5)
    draw = lambda key, *shape: jax.random.normal(key, shape).astype(dtype)
    sides = tuple(
        base.LinearLogits(
            draw(one, rows, length, width),
            draw(other, width, classes) * width**-0.5)
        for one, other in (keys[:2], keys[2:4]))
    labels = np.asarray(
        jax.random.randint(keys[4], (rows, length), 0, classes), np.int32)
    mask = _mask((rows, length))
    function = haikd.get_loss(loss)
    options = dict(labels=labels) if loss == 'cross_entropy' else {}

    def value(student, teacher):
      result = function(student, teacher, mask=mask, **options)
      return result.total, result

    def whole(student, teacher):
      return value(student.materialise(), teacher.materialise())

    wrt = lambda f: jax.value_and_grad(f, has_aux=True)
    compare.check(report, name, wrt(value), sides, _tolerance(dtype))
    device, _ = compare.devices()
    compare.check(
        report, f'{name}/against_materialised', wrt(value), sides,
        _tolerance(dtype),
        reference=compare.run_on(device, jax.jit(wrt(whole)), sides))

  return check


def _query_key(dtype, tiny):
  """Returns student, teacher (query and key), values, and the mask."""
  rows, length, size = (2, 16, 4) if tiny else (4, 1024, 64)
  keys = iter(jax.random.split(jax.random.key(1), 5))

  def draw(heads):
    return jax.random.normal(
        next(keys), (rows, length, heads, size)).astype(dtype)

  student = draw(4) * size**-0.5, draw(2)
  teacher = draw(8) * size**-0.5, draw(8)
  return student, teacher, draw(2), _mask((rows, length))


def _transfer(dtype, tiny):

  def check(report, name):
    student, teacher, _, mask = _query_key(dtype, tiny)
    allowed = attention_mask.AttentionMask(jnp.asarray(mask), causal=True)

    def value(student, teacher):
      maps = [attention.MeanMaps((base.QueryKey(*x, allowed),), 4)
              for x in (student, teacher)]
      result = haikd.losses.attention_transfer(*maps, mask=mask)
      return result.total, result

    compare.check(report, name, jax.value_and_grad(value, has_aux=True),
                  (student, teacher), _tolerance(dtype))

  return check


def _attend(dtype, tiny):

  def check(report, name):
    student, _, values, mask = _query_key(dtype, tiny)
    allowed = attention_mask.AttentionMask(jnp.asarray(mask), causal=True)

    def value(query, key, values):
      outputs = attention.attend(base.QueryKey(query, key, allowed), values)
      outputs = jnp.where(mask[..., None, None], outputs, 0)
      return jnp.sum(jnp.square(outputs.astype(jnp.float32))), outputs

    compare.check(
        report, name,
        jax.value_and_grad(value, (0, 1, 2), has_aux=True),
        (*student, values), _tolerance(dtype))

  return check


def _pooling(mode, size):

  def check(report, name):
    array = jax.random.normal(jax.random.key(2), (4, 80, 160))

    def value(array):
      pooled = align.avg_pool_array_to_target_shape(
          array, (4, size, 2 * size), align.PaddingMode[mode])
      return jnp.sum(jnp.square(pooled)), pooled

    compare.check(report, name, jax.value_and_grad(value, has_aux=True),
                  (array,), compare.FLOAT32)

  return check
