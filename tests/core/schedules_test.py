"""Schedules: their values, as optax computes them, and what is refused."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from haikd.core import checks
from haikd.core import schedules

STEPS = np.array([0, 3, 4, 5, 8, 11, 12, 13, 10**6])
PIECES = dict(kind='piecewise', at=(4, 8), values=(1.0, 0.25, 2))


@pytest.mark.parametrize('value, expected, settled', [
    (3, optax.constant_schedule(3.0), 0),
    (dict(kind='constant', value=3), optax.constant_schedule(3.0), 0),
    (dict(kind='linear', start=2.0, end=0.5, begin=4, steps=8),
     optax.linear_schedule(2.0, 0.5, 8, 4), 12),
    (dict(kind='cosine', start=1.0, begin=4, steps=8, end=0.0),
     lambda step: optax.cosine_decay_schedule(1.0, 8)(
         jnp.maximum(step - 4, 0)), 12),
    (dict(kind='exponential', start=4.0, begin=4, steps=8, end=0.25),
     optax.exponential_decay(4.0, 8, 1 / 16, transition_begin=4,
                             end_value=0.25), 12),
    (PIECES, optax.piecewise_constant_schedule(1.0, {4: 0.25, 8: 8.0}), 8),
])
def test_values_are_those_of_optax_on_device_and_host(value, expected, settled):
  schedule = schedules.build('config.x', value)
  wanted = np.broadcast_to(expected(jnp.asarray(STEPS)), STEPS.shape)
  on_device = schedule(jnp.asarray(STEPS))
  np.testing.assert_allclose(on_device, wanted, rtol=1e-6)
  np.testing.assert_allclose(schedule(STEPS, np), wanted, rtol=1e-6, atol=1e-7)
  assert schedule.settled == settled
  assert schedule.bounds == (wanted.min(), wanted.max())


@pytest.mark.parametrize('value', [
    3, 'all', PIECES, dict(kind='constant', value=2.0), dict(other=3),
    dict(kind='exponential', start=1.0, end=2.0, steps=5),
    dict(kind='linear', start=1.0, end=2.0, begin=2, steps=5)])
def test_schedule_begins_later(value):
  moved = schedules.later(value, 7)
  if not schedules.is_schedule(value):
    assert moved == value
    return
  moved, value = (schedules.build('config.x', x) for x in (moved, value))
  np.testing.assert_array_equal(moved(STEPS + 7, np) * np.ones(9),
                                value(STEPS, np) * np.ones(9))
  assert moved(np.int64(3), np) == value(np.int64(0), np)


def test_stages_have_a_schedule_each():
  ramp = dict(kind='linear', start=0.0, end=10.0, steps=10)
  staged = schedules.Staged(
      tuple(schedules.build('x', value) for value in (3, ramp, 0.5)), (4, 9))
  steps, expected = np.arange(12), [3] * 4 + [4, 5, 6, 7, 8] + [0.5] * 3
  np.testing.assert_array_equal(staged(steps, np), expected)
  np.testing.assert_allclose(staged(jnp.asarray(steps)), expected, rtol=1e-6)
  assert staged.settled == 9


@pytest.mark.parametrize('value, text', [
    (True, 'must be a number or a schedule'),
    ('linear', 'must be a number or a schedule'),
    (dict(kind='step', steps=3), 'must be a number or a schedule'),
    (dict(kind='linear', length=3),
     r"must be a number or a schedule dict\(kind='linear', start=, end="),
    (dict(kind='linear'), 'must run over at least one step.*steps=0, begin=0'),
    (dict(kind='linear', steps=3, begin=-1),
     'must run over at least one step, from step 0 or later'),
    (dict(kind='linear', steps=2.5), 'must run over at least .* got steps=2.5'),
    (dict(kind='cosine', start='4', steps=3), 'must be a schedule of finite'),
    (dict(kind='exponential', end=0.5, steps=3),
     'must have a start and an end above 0, which a factor joins; got start=0'),
    (dict(kind='constant'), 'must have numbers as values'),
    (dict(kind='piecewise', at=(3,), values=(1.0,)),
     'must have numbers as values, for `piecewise` one more than steps in'),
    (dict(kind='piecewise', at=(3, 3), values=(1, 2, 3)),
     r'\.at must rise from step to step, above 0; got \(3, 3\)'),
    (dict(kind='piecewise', at=(0,), values=(1, 2)), r'\.at must rise'),
])
def test_other_values_are_refused_by_their_field(value, text):
  pattern = f'^config.x {text}'.replace(r'x \.', r'x\.')
  with pytest.raises(checks.ConfigError, match=pattern):
    schedules.build('config.x', value)
