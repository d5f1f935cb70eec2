"""The best network, stopping early, and training for longer than planned."""

import json
import shutil

import jax
import numpy as np
import pytest

import haikd
from haikd import config as config_lib
from haikd.run import best as best_lib
from haikd.run import rates
from haikd.run import training
from haikd.storage import checkpoint

# A student whose cross-entropy on validation rises again soon.
RESTLESS = ('--config.steps=12', '--config.evaluation.every=1',
            '--config.optimizer.learning_rate=1.0',
            '--config.checkpoint_every=100', '--config.keep_checkpoints=1',
            '--config.evaluation.keep_best=cross_entropy',
            '--config.evaluation.patience=3')


def rows(workdir):
  return [json.loads(line)
          for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def result(workdir):
  """Returns the results of a run, but for its time."""
  results = json.loads((workdir / 'result.json').read_text())
  return {name: {**row, 'seconds': None} for name, row in results.items()}


def evaluation(**fields):
  result = config_lib.base().evaluation
  result.update(fields)
  return result


@pytest.mark.parametrize('metric, values, bests, over', (
    ('accuracy', [0.5, 0.5, 0.6, 0.1, 0.2], [1, 1, 3, 3, 3], 5),
    ('kl', [0.5, 0.6, 0.4, 0.4, 0.5], [1, 1, 3, 3, 3], 5),
    # Two without a better one, the first of which is NaN, end it at once.
    ('kl', [0.5, float('nan'), 0.6], [1, 1, 1], 3),
    ('kl', [float('nan'), 0.6, 0.5], [None, 2, 3], None),
))
def test_the_first_of_the_best_values(metric, values, bests, over):
  best = best_lib.Best(evaluation(keep_best=metric, patience=2))
  steps = []
  for step, value in enumerate(values, 1):
    before = best.step
    assert best.add(step, {metric: value}) == (best.step != before)
    steps.append(best.step)
    # An interruption changes nothing.
    saved = json.loads(json.dumps(best.to_json()))
    best = best_lib.Best(evaluation(keep_best=metric, patience=2), saved)
    assert best.is_over == (step == over)
  assert steps == bests


def test_another_metric_begins_anew_and_a_missing_one_changes_nothing():
  best = best_lib.Best(evaluation(keep_best='kl', patience=1))
  best.add(1, {'kl': 0.5})
  other = best_lib.Best(evaluation(keep_best='accuracy'), best.to_json())
  assert other.step is None
  assert not best.add(2, {'accuracy': 1.0})
  assert best.step == 1 and not best.is_over


def test_the_best_step_before_takes_the_place_of_one_that_is_gone():
  best = best_lib.Best(evaluation(keep_best='accuracy'))
  for step, value in enumerate([0.1, 0.4, 0.3, 0.5, 0.7], 1):
    best.add(step, {'accuracy': value})
  best = best_lib.Best(evaluation(keep_best='accuracy'),
                       json.loads(json.dumps(best.to_json())))
  best.leave_lost(lambda step: step < 4)
  assert best.step == 2
  assert not best.add(6, {'accuracy': 0.35})
  assert best.add(7, {'accuracy': 0.45})
  best.leave_lost(lambda step: False)
  assert best.step is None
  assert best.add(8, {'accuracy': 0.01})


def test_of_the_best_steps_before_only_the_last_are_saved():
  best = best_lib.Best(evaluation(keep_best='accuracy'))
  for step in range(1, 10):
    best.add(step, {'accuracy': step / 10})
  assert [step for step, _ in best.to_json()['earlier']] == [5, 6, 7, 8]


@pytest.mark.report
def test_the_best_network_is_kept_used_and_found_again(run, tmp_path):
  code, _, err = run(*RESTLESS, '--config.report.examples=0')
  assert code == 0, err
  scores = {row['step']: row['cross_entropy'] for row in rows(tmp_path / 'run')
            if row['split'] == 'eval/validation'}
  best = min(scores, key=scores.get)
  assert max(scores) == best + 3 < 12  # It has stopped early.
  assert 'student was not better in 3 evaluations' in err
  assert f'student is that of step {best}, with cross_entropy' in err
  assert sorted(int(path.name) for path in (
      tmp_path / 'run/checkpoints').glob('[0-9]*')) == [best, max(scores)]
  assert (f'distilled with haikd in {best} steps from a teacher of '
          ) in (page := (tmp_path / 'run/report.html').read_text())
  assert f'{max(scores)} steps were taken; step {best} was the best.' in page
  # What is reported is what that step has, here on the split of training.
  results = result(tmp_path / 'run')
  run(*RESTLESS, '--mode=eval', '--config.evaluation.final=validation')
  on_validation = json.loads(
      (tmp_path / 'run/eval-validation.json').read_text())
  assert on_validation['student']['cross_entropy'] == pytest.approx(
      scores[best], rel=1e-6)
  student = haikd.load(tmp_path / 'run')
  params, _ = checkpoint.load_network(
      tmp_path / 'run/checkpoints' / str(best))
  jax.tree.map(np.testing.assert_array_equal, student.params, params)
  # A new start has nothing to do.
  code, _, err = run(*RESTLESS)
  assert code == 0, err
  assert result(tmp_path / 'run') == results
  assert max(row['step'] for row in rows(tmp_path / 'run')) == max(scores)


def test_who_reads_the_run_gets_its_best_network(run, tmp_path):
  """An export, and a student that starts from it; beside it one alone."""
  code, _, err = run(*RESTLESS, '--config.baseline=True')
  assert code == 0, err
  folder = tmp_path / 'run/checkpoints'
  best, newest = sorted(int(x.name) for x in folder.glob('[0-9]*'))
  params, _ = checkpoint.load_network(folder / str(best))
  last, _ = checkpoint.load_network(folder / str(newest))
  assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves,
                                                 (params, last))))
  code, out, err = run(*RESTLESS, '--mode=export', '--format=npz')
  assert code == 0, err
  weights = np.load(f'{out.strip()}/weights.npz')
  for module, variables in params.items():
    for name, value in variables.items():
      np.testing.assert_array_equal(weights[f'{module}/{name}'], value)
  code, _, err = run(
      f'--config.student.init={tmp_path / "run"}', '--config.steps=1',
      '--config.optimizer.learning_rate=0.0', workdir='next')
  assert code == 0, err
  jax.tree.map(np.testing.assert_array_equal, params,
               checkpoint.load_network(tmp_path / 'next')[0])


def test_a_kill_at_any_step_ends_with_the_same_best(run, tmp_path, monkeypatch):
  run(*RESTLESS, workdir='whole')
  expected = rows(tmp_path / 'whole')
  last = max(row['step'] for row in expected)
  finish = training.collectives.shard_batch
  for step in range(2, last + 1, 2):

    class Killed(training.collectives.__class__):
      """What the trainer uses, until a step."""
      taken = 0

      @staticmethod
      def shard_batch(*args):
        Killed.taken += 1
        if Killed.taken == 3:
          raise KeyboardInterrupt
        return finish(*args)

    with monkeypatch.context() as patch:
      patch.setattr(training, 'collectives', Killed('killed'))
      try:
        run(*RESTLESS)
      except KeyboardInterrupt:
        pass
  code, _, err = run(*RESTLESS)
  assert code == 0, err
  assert rates.without(rows(tmp_path / 'run')) == rates.without(expected)
  assert result(tmp_path / 'run') == result(tmp_path / 'whole')


@pytest.mark.slow
def test_an_evaluation_that_failed_at_the_end_can_still_be_the_best(
    run, tmp_path, monkeypatch):
  """What training reports is what the checkpoint says ever after."""
  flags = ('--config.steps=4', '--config.evaluation.every=2',
           '--config.optimizer.learning_rate=0.01',
           '--config.evaluation.keep_best=kl')
  evaluate, calls = training.evaluate.evaluate, []

  def fail(*args):
    calls.append(1)
    # The last of the student, after two of the teacher in training, one of it
    # as it teaches, and the first of the student.
    if len(calls) == 5:
      raise ValueError('no memory left')
    return evaluate(*args)

  with monkeypatch.context() as patch:
    patch.setattr(training.evaluate, 'evaluate', fail)
    assert run(*flags)[0] == 1
  assert checkpoint.newest(tmp_path / 'run').name == '4'
  code, _, err = run(*flags)
  assert code == 0, err
  kl = [row['kl'] for row in rows(tmp_path / 'run') if 'kl' in row]
  assert kl[1] < kl[0]  # Step 4 is the best.
  run(*flags, '--mode=eval')
  saved = json.loads((tmp_path / 'run/eval-test.json').read_text())
  assert saved['student']['kl'] == pytest.approx(
      result(tmp_path / 'run')['student']['kl'], rel=1e-6)
  steps = [row['step'] for row in rows(tmp_path / 'run')
           if row['split'] == 'eval/validation']
  assert steps == [2, 4]
  run(*flags)  # Nothing is repeated.
  assert steps == [row['step'] for row in rows(tmp_path / 'run')
                   if row['split'] == 'eval/validation']


def test_a_best_step_that_was_removed_is_replaced_by_the_newest(
    run, tmp_path, caplog):
  code, _, err = run(*RESTLESS)
  assert code == 0, err
  steps = sorted(int(path.name) for path in (
      tmp_path / 'run/checkpoints').glob('[0-9]*'))
  shutil.rmtree(tmp_path / 'run/checkpoints' / str(steps[0]))
  caplog.set_level('INFO', logger='haikd')
  params = haikd.load(tmp_path / 'run').params
  assert f'that of step {steps[0]}, the best, is gone' in caplog.text
  newest, _ = checkpoint.load_network(
      tmp_path / 'run/checkpoints' / str(steps[1]))
  jax.tree.map(np.testing.assert_array_equal, params, newest)
  code, _, err = run(*RESTLESS)  # It goes on, and follows the metric anew.
  assert code == 0, err
  assert max(row['step'] for row in rows(tmp_path / 'run')) > steps[1]


def test_what_decides_the_best_is_bound_to_the_run(run):
  assert run('--config.evaluation.keep_best=accuracy')[0] == 0
  for flag in ('keep_best=f1', 'split=test'):
    code, _, err = run('--config.evaluation.keep_best=accuracy',
                       f'--config.evaluation.{flag}')
    assert code == 3
    assert f'config.evaluation.{flag.split("=")[0]}=' in err


@pytest.mark.parametrize('flags, match', (
    (('keep_best=acuracy',), r"keep_best must be a metric of the student; got "
     r"'acuracy'. Did you mean 'accuracy'"),
    (('patience=2',), 'evaluation must have keep_best'),
    (('patience=0', 'keep_best=kl'), 'patience must be None or a positive'),
))
def test_what_cannot_be_followed_is_refused(run, tmp_path, flags, match):
  code, _, err = run(*(f'--config.evaluation.{flag}' for flag in flags))
  assert code == 2
  assert match.replace('\\', '') in err
  assert not (tmp_path / 'run').exists()


def test_networks_without_the_metric_keep_their_last(run):
  code, _, err = run('--config.evaluation.keep_best=agreement')
  assert code == 0, err
  assert 'teacher has no agreement, config.evaluation.keep_best' in err


@pytest.mark.slow
def test_longer_training_is_that_of_a_longer_run(run, tmp_path):
  flags = ('--config.optimizer.schedule=constant',)
  run(*flags, '--config.steps=8', workdir='whole')
  code, _, err = run(*flags, '--config.steps=3')
  assert code == 0 and 'config.steps is' not in err
  code, _, err = run(*flags, '--config.steps=8')
  assert code == 0, err
  assert err.count('config.steps is 8, where it was 3') == 1
  whole, longer = (checkpoint.load_network(tmp_path / name)
                   for name in ('whole', 'run'))
  jax.tree.map(np.testing.assert_array_equal, whole, longer)
  # Once it is longer, it is said no more, and cannot become shorter.
  code, _, err = run(*flags, '--config.steps=8')
  assert code == 0 and 'config.steps is' not in err
  # Nothing is trained: nothing goes on.
  code, _, err = run(*flags, '--config.steps=9', '--mode=eval')
  assert code == 0 and 'config.steps is' not in err
  code, _, err = run(*flags, '--config.steps=7')
  assert code == 2
  assert 'config.steps must be no fewer than the steps of student; got 7' in err
