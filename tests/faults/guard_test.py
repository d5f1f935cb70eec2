"""Numbers that are not finite: what the guard of a training does about them."""

import json

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import config as config_lib
from haikd import data as data_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.data import pipeline
from haikd.engine import guarding
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.run import rates
from haikd.run import trainer
from haikd.storage import checkpoint
from haikd.storage import fingerprint

# Nothing is logged, evaluated or saved before the last step.
FIELDS = {'steps': 12, 'batch_size': 8, 'log_every': 1000,
          'checkpoint_every': 1000, 'evaluation.every': 1000,
          'optimizer.schedule': 'constant', 'data.name': 'spiky'}


@pytest.fixture(autouse=True)
def spiky():
  """A data set of which one example is too large for its square."""
  with registry.datasets.temporary(), registry.models.temporary():

    @haikd.register_model()
    def plain(inputs, *, is_training, num_classes):
      return hk.Linear(num_classes)(jnp.tanh(hk.Linear(4)(inputs)) + inputs)

    @haikd.register_dataset()
    def spiky(split):
      x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
      if split == 'train':
        x[7] = 1e30
      return data_lib.Arrays(dict(x=x, label=np.arange(40) % 3), num_classes=3)

    yield


@pytest.fixture(params=(2**24, 0), ids=('kept', 'donated'))
def either_state(request, monkeypatch):
  """A state that is written anew, and one that is updated where it is."""
  monkeypatch.setattr(program_lib, '_DONATED_ON_CPU', request.param)


class Training:
  """A student on one device, and where its wrong batches are."""

  def __init__(self, workdir, **fields):
    config = config_lib.base()
    config.student.model = 'plain'
    config.update_from_flattened_dict({**FIELDS, **fields})
    self.config, self.workdir = config, workdir
    self.data = pipeline.build_data(config)
    self.program = program_lib.build_program(
        config, spec=self.data.spec, num_classes=3, has_teacher=False,
        mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:1]))
    iterator = self.data.train()
    self.batches = [next(iterator) for _ in range(40)]
    self.wrong = [number for number, batch in enumerate(self.batches)
                  if np.abs(batch.inputs).max() > 1e9]

  def start(self):
    return trainer.train(self.config, self.program, self.data, None,
                         self.workdir, 'student')

  def steps(self, numbers, state=None):
    """Returns the state after steps on the batches of these numbers.

    A number of None takes no update.
    """
    state = state or self.program.init(jax.random.key(0))
    for number in numbers:
      if number is None:
        state = state._replace(step=state.step + 1)
      else:
        state, _ = self.program.train_step(state, None, self.batches[number])
    return state

  def rows(self):
    lines = (self.workdir / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def identity(params):
  return fingerprint.tree_hash(jax.device_get(params))


@pytest.mark.usefixtures('either_state')
def test_the_step_is_named_and_all_before_it_is_saved(tmp_path):
  training = Training(tmp_path)
  number = training.wrong[0]
  assert 0 < number < 5, training.wrong
  with pytest.raises(
      checks.DivergedError,
      match='^loss and gradient must stay finite; got grad_norm: not finite, '
      f'from student/.* on, at step {number + 1} of student. .*bad data. A '
      f'new start goes on from step {number}.$'):
    training.start()
  params, _ = checkpoint.load_network(tmp_path)
  assert identity(params) == identity(
      training.steps(range(number)).params.student)
  # The field may differ: what was saved goes on to the end.
  again = Training(tmp_path, **{'guard.nonfinite': 'skip'})
  expected = again.steps(
      None if i in again.wrong else i for i in range(12)).params.student
  assert identity(again.start().network.params) == identity(expected)
  last = rates.without(again.rows())[-2]
  assert last['skipped'] == sum(x < 12 for x in again.wrong) > 1
  stops = Training(tmp_path, steps=13)  # What was skipped before is no halt.
  assert 12 not in stops.wrong and stops.start()


def test_more_skipped_steps_than_the_limit_end_the_run(tmp_path, caplog):
  training = Training(tmp_path, log_every=1, **{
      'guard.nonfinite': 'skip', 'guard.limit': 1})
  first, second = (number + 1 for number in training.wrong[:2])
  with caplog.at_level('INFO', 'haikd'):
    with pytest.raises(
        checks.DivergedError, match='the skipped step number 2, where config.'
        f'guard.limit is 1, at step {second} of student'):
      training.start()
  assert f'step {first} was skipped (grad_norm: not finite' in caplog.text


@pytest.mark.usefixtures('either_state')
@pytest.mark.parametrize('every', (1, 1000))
def test_a_rollback_passes_over_the_batches_since_the_checkpoint(
    tmp_path, caplog, every):
  training = Training(tmp_path, checkpoint_every=2, log_every=every, **{
      'guard.nonfinite': 'rollback'})
  # Where each saved step is in the data; batches after a rollback are others.
  number, step, saved, done, rolled = 0, 0, 0, [], 0
  while step < 12:
    if number in training.wrong:
      step, done, rolled = saved, done[:saved], rolled + 1
    else:
      step, done = step + 1, [*done, number]
      saved = step if step % 2 == 0 else saved
    number += 1
  with caplog.at_level('INFO', 'haikd'):
    trained = training.start()
  assert identity(trained.network.params) == identity(
      training.steps(done).params.student)
  assert rolled > 1 and f'rollback {rolled} of 10' in caplog.text
  steps = [row['step'] for row in training.rows() if row['split'] == 'train']
  assert steps == sorted(set(steps)) and steps[-1] == 12
  assert rates.without(training.rows())[-2]['rollbacks'] == rolled
  assert checkpoint.metadata(tmp_path)['rollbacks'] == rolled
  seconds, = (row for row in training.rows() if row['split'] == rates.TIME)
  assert seconds['redone'] > 0


def test_rollbacks_end_at_the_limit(tmp_path):
  training = Training(tmp_path, **{
      'guard.nonfinite': 'rollback', 'guard.limit': 1})
  with pytest.raises(checks.DivergedError, match=r'after 1 rollbacks \(config'):
    training.start()


def test_a_large_gradient_is_a_spike(tmp_path):
  training = Training(tmp_path, **{'guard.max_grad_norm': 1e-6})
  with pytest.raises(
      checks.DivergedError, match='got grad_norm: above config.guard.max_grad_'
      'norm, the largest part in student/.*, at step 1 of'):
    training.start()


def test_terms_are_named():
  terms = [f't{i}' for i in range(40)]
  seen = lambda *bits: base.Seen(1, 1, sum(1 << bit for bit in bits), 1)
  params = base.Params({'net': {'b': 0, 'w': 0}}, {})
  describe = lambda *bits: guarding.describe(seen(*bits), terms, params)
  assert describe(0, 1, 2, 4) == 'loss/t0, loss/t2: not finite'
  assert describe(0, 1) == 'loss: not finite'
  assert describe(0) == 'grad_norm: not finite, from student/net/w on'
  assert describe(30).startswith('loss/t28, loss/t29') and 't39' in describe(30)


def test_no_state_that_is_not_finite_is_saved(tmp_path):
  """Also not in parts that the loss does not depend on."""
  training = Training(tmp_path, steps=1)
  step = training.program.train_step

  def spoilt(*args):
    state, metrics = step(*args)
    return state._replace(opt_state=jax.tree.map(
        lambda x: x * np.nan if checks.is_real(x) else x,
        state.opt_state)), metrics

  first, = training.program.stages
  training.program = training.program._replace(
      stages=(first._replace(train_step=spoilt),))
  match = 'got opt_state/.*: not finite'
  with pytest.raises(checks.DivergedError, match=match):
    training.start()
  assert not checkpoint.has_checkpoint(tmp_path)
