"""Mutated configs: each takes a step, or is refused in one readable line."""

import contextlib
import math
import random
import re
import signal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base as base_lib
from haikd.core import checks
from haikd.engine import collectives
from haikd.engine import fits
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib

_SECONDS = 120  # For one config, on a machine that others use too.

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


# Values of the right type, some of them out of range.
LIKE = {
    bool: (False, True),
    int: (0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 64, -1, 2**31),
    float: (0.0, 1e-30, 1e-8, 0.1, 0.5, 0.99, 1.0, 1.5, 2.0, 10.0, 1e9, -1.0,
            math.nan, math.inf),
    str: ('auto', 'stop', 'skip', 'rollback', 'go_on', 'mlp', 'convnet', 'vit',
          'float32', 'bfloat16', 'float16', 'adamw', 'sgd', 'lion', 'cosine',
          'linear', 'constant', 'full', 'blocks', 'uncertainty', 'dtp',
          'gradient_norm', 'fixed', 'classification', 'multilabel',
          'regression', 'dense', 'train', 'validation', 'accuracy', ''),
    tuple: ((), (4,), (4, 4), (0,), ((0, 0),), ((0, 1),), ('kl_divergence',)),
}
# What may be an entry of a dict of losses, and other fields that take much.
LOSSES = tuple(
    dict(loss=loss, weight=weight, **more)
    for loss in ('kl_divergence', 'reverse_kl', 'jensen_shannon', 'dist',
                 'feature_matching', 'cka', 'cross_entropy', 'logit_mse')
    for weight in (0.1, 0.0, -1.0, dict(kind='linear', start=1., end=0.,
                                        steps=4))
    for more in ({}, dict(layers='last'), dict(align='project'),
                 dict(options=dict(temperature=3.0))))
FREE = (1.0, 4.0, 0.0, dict(kind='linear', start=4.0, end=1.0, steps=8),
        dict(kind='cosine', start=1.0, end=0.0, steps=4), 'uniform', 'last',
        ((0, 0),), dict(kind='dtp', gamma=2.0), 'uncertainty', None)
NETWORKS = (('mlp', dict(hidden=(4,))), ('mlp', dict(hidden=(4, 4))),
            ('mlp', dict(hidden=(6, 5), dropout=0.1)),
            ('convnet', dict(channels=(2,))),
            ('vit', dict(patch_size=2, width=4, depth=1, heads=2)))


def make_config(rng):
  config = config_lib.base()
  config.steps, config.batch_size = 8, 16
  model = rng.choice(('mlp', 'convnet', 'vit', None))
  for network in (config.teacher, config.student):
    network.model, network.options = rng.choice(
        [x for x in NETWORKS if model in (x[0], None)])
  config.teacher.train.steps = 2
  config.losses.extra = dict(
      loss='feature_matching' if model else 'logit_mse', weight=0.1)
  config.stages.late = dict(start=0.5, optimizer=dict(learning_rate=1e-4))
  return config


def paths_of(config, prefix=()):
  """Yields the path of every field and group of fields."""
  for name, value in config.items():
    yield (*prefix, name)
    if hasattr(value, 'items'):
      yield from paths_of(value, (*prefix, name))


def mutate(rng):
  """Returns a config with one to four wrong or strange fields, and which."""
  config, done = make_config(rng), []
  any_value = rng.random() < 0.4
  for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
    paths = sorted(paths_of(config), key=str)
    path = rng.choice(paths)
    parent = config
    for name in path[:-1]:
      parent = parent[name]
    name = path[-1]
    kind = rng.choice(('value',) * 8 + ('add', 'remove', 'swap'))
    value = rng.choice(VALUES)
    if not any_value:
      kind, value = 'value', like(parent[name], path, rng)
    if kind == 'swap':
      value = config
      for step in rng.choice(paths):
        value = value[step]
      if isinstance(value, config_lib.ConfigDict):  # It might hold itself.
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


def like(value, path, rng):
  """Returns another value for a field, of a type that it takes."""
  if path[-1] == 'losses':
    return {f'term{i}': rng.choice(LOSSES) for i in range(rng.choice((1, 2)))}
  if rng.random() < 0.1:
    return rng.choice(FREE)
  if type(value) in LIKE:
    return rng.choice(LIKE[type(value)])
  if value is None or not hasattr(value, 'items'):
    return rng.choice(FREE + LIKE[int] + LIKE[float] + LIKE[str])
  return {name: like(x, (name,), rng) if rng.random() < 0.2 else x
          for name, x in dict(value).items()}


def take_steps(config, done):
  """Validates a config, and takes the first step of each of its stages.

  Args:
    config: may be anything.
    done: a set of the programs that were run already, but for the numbers in
      them. Such a one is not run again.
  """
  config_lib.validate(config)
  size = min(config.batch_size, 64)
  batch = base_lib.Batch(
      np.ones((size, 4, 4, 1), np.float32), np.ones(size, bool),
      labels=np.zeros(size, np.int32))
  mesh = mesh_lib.build_mesh(config.mesh, jax.devices()[:1])
  mesh_lib.check_batch_size(mesh, size, config.microbatches)
  spec = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch))
  program = program_lib.build_program(
      config, spec=spec, num_classes=3, has_teacher=True, mesh=mesh)
  fits.check(program, spec, 'student')
  programs = {re.sub('dense<[^>]*>', '', stage.train_step.lower(
      stage.abstract_state, stage.abstract_frozen, spec).as_text())
              for stage in program.stages}
  if not programs <= done:
    run_steps(program, collectives.shard_batch(mesh, batch))
    done |= programs


def run_steps(program, batch):
  teacher, frozen = program.objective.teacher, None
  if teacher is not None:
    frozen = program.freeze(base_lib.Variables(
        *jax.jit(teacher.init)(jax.random.key(1), batch)))
  state = program.init(jax.random.key(0))
  for stage in program.stages:
    state = stage.enter(state, 'student')
    state, metrics = stage.take(stage.start + 1, state, frozen, batch)
  jax.block_until_ready((state, metrics))


def check(seed, count):
  """Checks mutated configs; returns how many were refused, and failures."""
  refused, failures = 0, []

  def late(*unused):
    raise TimeoutError

  before = signal.signal(signal.SIGALRM, late)
  rng, programs = random.Random(seed), set()
  for number in range(count):
    config, done = mutate(rng)
    signal.alarm(_SECONDS)
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        take_steps(config, programs)
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


def test_mutated_configs_take_a_step_or_are_refused_in_a_line():
  refused, failures = check(seed=0, count=40)
  assert not failures, failures[:5]
  assert 12 < refused < 38


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(1, 11))
def test_thousands_of_mutated_configs(seed):
  refused, failures = check(seed, count=500)
  print(f'seed {seed}: 500 configs, {refused} refused, {len(failures)} failed')
  assert not failures, failures[:5]
