"""Frozen parts and learning rates by part, as a user sets them."""

import pytest

from haikd.storage import checkpoint


def weights(workdir):
  return checkpoint.load_network(workdir)[0]


def test_a_student_is_trained_on_top_of_what_another_run_has_learned(
    run, tmp_path):
  run(workdir='first')
  code, _, err = run(
      f'--config.student.init={tmp_path / "first"}',
      "--config.optimizer.frozen=('hidden_0',)",
      "--config.optimizer.lr_multipliers.logits=2.0",
      '--config.optimizer.weight_decay=0.1', '--config.seed=1')
  assert code == 0, err
  first, second = weights(tmp_path / 'first'), weights(tmp_path / 'run')
  changed = {name for name in first
             if (first[name]['w'] != second[name]['w']).any()}
  assert changed == {'logits'}


@pytest.mark.parametrize('flag, match', (
    ("frozen=('hidden_2',)",
     "optimizer.frozen must match modules or parameters; got 'hidden_2'. Did "
     "you mean"),
    ("frozen=('*',)", 'optimizer.frozen must leave parameters to train'),
    ("frozen=('~',)", 'optimizer.frozen must match modules or parameters'),
    ('lr_multipliers.logit=2.0', "lr_multipliers must match modules or "
     "parameters; got 'logit'. Did you mean"),
    ('lr_multipliers.logits=0.0', 'lr_multipliers must give a positive number'),
))
@pytest.mark.parametrize('field', ('optimizer', 'teacher.train.optimizer'))
def test_what_matches_nothing_is_refused(run, tmp_path, field, flag, match):
  code, _, err = run(f'--config.{field}.{flag}')
  assert code == 2
  assert f'config.{field}' in err and match in err
  assert not (tmp_path / 'run').exists()
