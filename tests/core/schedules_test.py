"""Schedules: their values, as optax computes them, and what is refused."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from haikd.core import checks
from haikd.core import schedules

STEPS = np.array([0, 3, 4, 5, 8, 11, 12, 13, 10**6])


@pytest.mark.parametrize('value, expected', [
    (3, optax.constant_schedule(3.0)),
    (dict(kind='linear', start=2.0, end=0.5, begin=4, steps=8),
     optax.linear_schedule(2.0, 0.5, 8, 4)),
    (dict(kind='cosine', start=1.0, begin=4, steps=8, end=0.0),
     lambda step: optax.cosine_decay_schedule(1.0, 8)(
         jnp.maximum(step - 4, 0))),
])
def test_values_are_those_of_optax_on_device_and_host(value, expected):
  schedule = schedules.build('config.x', value)
  wanted = np.broadcast_to(expected(jnp.asarray(STEPS)), STEPS.shape)
  np.testing.assert_array_equal(schedule(jnp.asarray(STEPS)), wanted)
  np.testing.assert_allclose(schedule(STEPS, np), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('value, text', [
    (True, 'must be a number or a schedule'),
    ('linear', 'must be a number or a schedule'),
    (dict(kind='step', steps=3), 'must be a number or a schedule'),
    (dict(kind='linear', length=3), 'must be a number or a schedule'),
    (dict(kind='linear'), 'must run over at least one step.*steps=0, begin=0'),
    (dict(kind='linear', steps=3, begin=-1),
     'must run over at least one step, from step 0 or later'),
])
def test_other_values_are_refused_by_their_field(value, text):
  with pytest.raises(checks.ConfigError, match=f'^config.x {text}'):
    schedules.build('config.x', value)
