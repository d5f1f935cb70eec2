"""Losses on predictions, as a user's config names them."""

import json
import math

import pytest

TERMS = dict(
    reverse_kl={}, total_variation=dict(temperature=1.0), top_k_kl=dict(k=2),
    jensen_shannon=dict(
        beta=dict(kind='linear', start=0.0, end=1.0, steps=2)),
    skewed_kl=dict(reverse=True), decoupled_kd={}, universal_logit={})


def losses_of(folder):
  rows = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  return [{key: value for key, value in row.items() if key.startswith('loss/')}
          for row in rows if 'loss' in row]


def test_a_language_model_learns_by_all_at_once(run, tmp_path,
                                                write_language_model):
  config = write_language_model(
      'lm.py', name='synthetic',
      options=dict(kind='tokens', size=20, length=6, vocabulary=11))
  terms = ''.join(f'  config.losses.{name} = dict(loss={name!r}, '
                  f'options={options!r})\n' for name, options in TERMS.items())
  config.write_text(
      config.read_text().replace('  return config', f'{terms}  return config'))
  code, _, err = run('--config.distillation.label_smoothing=0.1',
                     config='lm.py')
  assert code == 0, err
  row, = losses_of(tmp_path / 'run')
  assert set(row) == {f'loss/{name}' for name in (
      'kl_divergence', 'cross_entropy', *TERMS)}
  assert all(value > 0 and math.isfinite(value) for value in row.values())


def test_a_classifier_learns_by_correlation(run, tmp_path):
  code, _, err = run('--config.losses.dist.loss=dist')
  assert code == 0, err
  assert all(row['loss/dist'] > 0 for row in losses_of(tmp_path / 'run'))


@pytest.mark.parametrize('flags, match', (
    (('distillation.label_smoothing=0.1', 'distillation.alpha=1.0'),
     'config.distillation.label_smoothing must be 0 unless alpha is below 1'),
    (('distillation.label_smoothing=1.0',),
     'config.distillation.label_smoothing must be 0 or more, and below 1'),
    (('losses.js.loss=jensen_shannon', 'losses.js.options.beta=2.0'),
     'config.losses.js: beta must lie between 0 and 1; got 2.0')))
def test_what_cannot_be_right_is_refused(run, flags, match):
  code, _, err = run(*(f'--config.{flag}' for flag in flags))
  assert code == 2
  assert match in err
