"""Balanced losses, as a user's config names them."""

import json
import math

import pytest

from haikd.storage import checkpoint
from haikd.storage import fingerprint

PLUGIN = """
    import haikd

    @haikd.register_loss(on='logits')
    def rewarding(student, teacher, *, mask):
      return haikd.masked_mean(-abs(student).sum(-1), mask)
"""


LATE = ('--config.stages.late.start=1',
        '--config.stages.late.losses.hint.weight=0.5')


@pytest.mark.parametrize('kind, flags, factor', (
    ('gradient_norm', LATE, 0.5), ('uncertainty', (), 1.001)))
def test_a_job_balances_its_losses(run, tmp_path, kind, flags, factor):
  code, _, err = run(
      '--config.steps=2', '--config.log_every=1', f'--config.balance={kind}',
      '--config.losses.hint.loss=feature_matching',
      '--config.losses.hint.layers=((0,0),)', *flags)
  assert code == 0, err
  rows = map(json.loads,
             (tmp_path / 'run/metrics.jsonl').read_text().splitlines())
  first, second = (
      [row[f'weight/{name}'] for name in (
          'kl_divergence', 'cross_entropy', 'hint')]
      for row in rows if row['split'] == 'train')
  # The factors of 0.9, 0.1 and 1 add up to 3.
  assert first[0] / 0.9 + first[1] / 0.1 + first[2] == pytest.approx(3)
  # The stage halves the weight; a step of Adam raises the other by 0.001.
  assert second[2] == pytest.approx(factor * first[2], rel=0.05 * (factor < 1),
                                    abs=1e-5)


def weights(workdir, name):
  """Returns a term's weight at each step."""
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [row[f'weight/{name}'] for row in rows if row['split'] == 'train']


def test_dtp_begins_alike_whatever_the_scale_of_a_loss(run, tmp_path):
  code, _, err = run(
      '--config.steps=2', '--config.log_every=1',
      '--config.balance={"kind": "dtp", "gamma": 2.0}')
  assert code == 0, err
  # kappa = exp(-1) at first: -(1 - kappa)^2 log kappa = (1 - exp(-1))^2.
  factor = (1 - math.exp(-1))**2
  for name, weight in (('kl_divergence', 0.9), ('cross_entropy', 0.1)):
    first, second = weights(tmp_path / 'run', name)
    assert first == pytest.approx(weight * factor, rel=1e-5)
    assert second == pytest.approx(first, rel=0.2)


@pytest.mark.parametrize('kind', (
    'gradient_norm', pytest.param('uncertainty', marks=pytest.mark.slow),
    pytest.param('dtp', marks=pytest.mark.slow)))
def test_a_balanced_run_goes_on_as_if_nothing_had_happened(
    run, tmp_path, kind):
  flags = (f'--config.balance={kind}', '--config.optimizer.schedule=constant',
           '--config.log_every=1')
  assert run(*flags, '--config.steps=6', workdir='whole')[0] == 0
  assert run(*flags, '--config.steps=3')[0] == 0
  assert run(*flags, '--config.steps=6')[0] == 0
  assert weights(tmp_path / 'run', 'kl_divergence') == (
      weights(tmp_path / 'whole', 'kl_divergence'))
  assert fingerprint.tree_hash(checkpoint.load_network(tmp_path / 'run')) == (
      fingerprint.tree_hash(checkpoint.load_network(tmp_path / 'whole')))


def test_a_single_loss_is_not_balanced(run):
  code, _, err = run('--config.balance=dtp', '--config.distillation.alpha=1.0')
  assert code == 2
  assert 'config.balance must be fixed where there is one loss; got' in err


def test_a_loss_below_zero_ends_a_balanced_job(run, tmp_path):
  (tmp_path / 'my_rewards.py').write_text(
      '\n'.join(line[4:] for line in PLUGIN.splitlines()))
  code, _, err = run("--config.plugins=('my_rewards',)",
                     '--config.losses.it.loss=rewarding',
                     '--config.balance=dtp')
  assert code == 2
  assert 'config.balance must weigh losses that are never negative; got' in err
