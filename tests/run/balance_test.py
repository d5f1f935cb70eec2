"""Balanced losses, as a user's config names them."""

import json

import pytest

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


def test_a_loss_below_zero_ends_a_balanced_job(run, tmp_path):
  (tmp_path / 'my_rewards.py').write_text(
      '\n'.join(line[4:] for line in PLUGIN.splitlines()))
  code, _, err = run("--config.plugins=('my_rewards',)",
                     '--config.losses.it.loss=rewarding',
                     '--config.balance=dtp')
  assert code == 2
  assert 'config.balance must weigh losses that are never negative; got' in err
