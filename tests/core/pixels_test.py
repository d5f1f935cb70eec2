"""Images that are scaled in the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import base
from haikd.core import pixels

BYTES = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
# 51 / 255 = 0.2; less the mean, divided by the deviation.
SCALED = [(0 - 0.5) / 0.25, (0.2 - 0.4) / 0.5, (1 - 0.25) / 0.75]


def images():
  return pixels.Pixels(BYTES, mean=(0.5, 0.4, 0.25), std=(0.25, 0.5, 0.75))


def batch_of(inputs):
  return base.Batch(inputs, np.ones(1, bool))


@pytest.mark.parametrize('wrap', [lambda run: run, jax.jit])
def test_a_network_gets_numbers_from_bytes(wrap):
  moved = jax.device_put(batch_of(images()))
  assert moved.inputs.values.dtype == jnp.uint8  # As they were sent.
  inputs = wrap(lambda batch: batch.view('student').inputs)(moved)
  assert inputs.dtype == jnp.float32
  np.testing.assert_allclose(np.ravel(inputs), SCALED, rtol=1e-6, atol=1e-6)


def test_each_network_has_its_own_scale():
  own = pixels.Pixels(BYTES, mean=0.0, std=1.0)
  batch = batch_of(images())._replace(
      student=base.View(dict(image=own, x=np.ones(1)), np.ones(1, bool)))
  seen = batch.view('student').inputs
  np.testing.assert_allclose(np.ravel(seen['image']), [0, 0.2, 1], rtol=1e-6)
  assert seen['x'] == 1
  np.testing.assert_allclose(np.ravel(batch.view('teacher').inputs), SCALED,
                             rtol=1e-6)


def test_shapes_are_those_of_the_numbers():
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                      batch_of(images()))
  assert spec.inputs.values.dtype == np.uint8
  assert spec.view('teacher').inputs == jax.ShapeDtypeStruct((1, 1, 1, 3),
                                                             np.float32)
  assert (spec.inputs.shape, spec.inputs.dtype) == ((1, 1, 1, 3), np.float32)
