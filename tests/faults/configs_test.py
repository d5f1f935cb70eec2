"""Mutated configs: each is accepted, or refused in one readable line."""

import contextlib
import math
import random
import re
import signal
import warnings

import jax
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base as base_lib
from haikd.core import checks
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib

_SECONDS = 60  # For one config, on a machine that others use too.

VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**70, -2**70, 0.0, -0.0, 0.5,
    1.0, -2.5, 2.7, 1e-30, 1e30, 3e38, math.nan, math.inf, -math.inf, '', ' ',
    'x', 'é\n"', 'cosine', 'mlp', 'llama', 'kl_divergence', 'float16', '*',
    '[', '(', 'a' * 300, (), (0,), (1, 2), (-1,), ('x',), (None,), ((0, 1),),
    [], [1.5], {}, {'kind': 'linear'}, {'kind': 'piecewise', 'at': (3, 2),
                                        'values': (1,)},
    {'kind': 'adaptive'}, {'kind': 3}, {'x': None}, {'x': {'y': {}}},
    {'loss': 'kl_divergence', 'weight': 'x'}, {'weight': -1}, {1: 2},
    {'start': 0.5}, {'start': 2, 'losses': {'x': None}},
    {'loss': 'feature_matching', 'weight': 0.1, 'layers': ((0, 9),)},
    {'loss': 'dist', 'weight': dict(kind='cosine', start=1., end=0., steps=4)},
    object, len, 1j, b'x', np.float32(2), np.zeros(2))


def make_config():
  config = config_lib.base()
  config.steps, config.batch_size = 8, 16
  config.teacher.options = dict(hidden=(4, 4))
  config.student.options = dict(hidden=(4,))
  config.teacher.train.steps = 2
  config.losses.extra = dict(loss='feature_matching', weight=0.1)
  config.stages.late = dict(start=0.5, optimizer=dict(learning_rate=1e-4))
  return config


def paths_of(config, prefix=()):
  """Yields the path of every field and group of fields."""
  for name, value in config.items():
    yield (*prefix, name)
    if hasattr(value, 'items'):
      yield from paths_of(value, (*prefix, name))


def mutate(rng):
  """Returns a config with one to three wrong or strange fields, and which."""
  config, done = make_config(), []
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    paths = sorted(paths_of(config), key=str)
    path = rng.choice(paths)
    parent = config
    for name in path[:-1]:
      parent = parent[name]
    name = path[-1]
    kind = rng.choice(('value',) * 8 + ('add', 'remove', 'swap'))
    value = rng.choice(VALUES)
    if kind == 'swap':
      value = config
      for step in rng.choice(paths):
        value = value[step]
      if hasattr(value, 'items'):  # Or a config might hold itself.
        value = value.copy_and_resolve_references()
    with contextlib.suppress(TypeError, ValueError, AttributeError, KeyError):
      with config.unlocked(), parent.unlocked(), parent.ignore_type():
        if kind == 'remove':
          del parent[name]
        elif kind == 'add':
          parent[rng.choice(('x', name + 's', 'options', ''))] = value
        else:
          parent[name] = value
        done.append((kind, '.'.join(map(str, path)), value))
  return config, done


def build(config):
  """Validates a config, and builds its objectives and optimizers."""
  config_lib.validate(config)
  size = min(config.batch_size, 64)
  spec = base_lib.Batch(
      jax.ShapeDtypeStruct((size, 4, 4, 1), np.float32),
      jax.ShapeDtypeStruct((size,), np.bool_),
      labels=jax.ShapeDtypeStruct((size,), np.int32))
  program_lib.build_program(
      config, spec=spec, num_classes=3, has_teacher=True,
      mesh=mesh_lib.build_mesh(config.mesh))


def check(seed, count):
  """Checks mutated configs; returns how many were refused, and failures."""
  refused, failures = 0, []

  def late(*unused):
    raise TimeoutError

  before = signal.signal(signal.SIGALRM, late)
  rng = random.Random(seed)
  for number in range(count):
    config, done = mutate(rng)
    signal.alarm(_SECONDS)
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        build(config)
    except (checks.ConfigError, checks.DataError) as err:
      refused += 1
      line = str(err)
      if '\n' in line or len(line) > 1500 or not re.search(
          ' must | is missing', line):
        failures.append((number, done, f'not a line: {line[:300]}'))
    except BaseException as err:  # Whatever a mutation leads to.
      failures.append((number, done, f'{type(err).__name__}: {err}'[:300]))
    finally:
      signal.alarm(0)
  signal.signal(signal.SIGALRM, before)
  return refused, failures


def test_mutated_configs_are_accepted_or_refused_in_a_line():
  refused, failures = check(seed=0, count=200)
  assert not failures, failures[:5]
  assert 40 < refused < 200


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(1, 11))
def test_thousands_of_mutated_configs(seed):
  refused, failures = check(seed, count=500)
  print(f'seed {seed}: 500 configs, {refused} refused, {len(failures)} failed')
  assert not failures, failures[:5]
