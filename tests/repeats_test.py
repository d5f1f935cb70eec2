"""Means and intervals over seeds."""

import json

import numpy as np

from haikd import launch
from haikd import repeats


def results(alone, distilled):
  rest = dict(parameters=1, cross_entropy=0.5, kl=0.1, agreement=1.0,
              seconds=1.0)
  return dict(
      student_alone=dict(rest, accuracy=alone),
      student=dict(rest, accuracy=distilled))


def test_gain_is_paired_and_has_students_interval():
  summary = repeats.summarise([results(0.90, 0.91), results(0.80, 0.83),
                               results(0.70, 0.72)])
  # Differences 1, 3 and 2 %: mean 2 %, s = 1 %; t(0.975, 2) = 4.302653 from a
  # printed table, so the half width is 4.302653 / sqrt(3) = 2.484138 %.
  gain = summary['gain']['accuracy']
  np.testing.assert_allclose(gain['mean'], 0.02)
  np.testing.assert_allclose(gain['half_width'], 0.02484138, rtol=1e-6)
  np.testing.assert_allclose(summary['student_alone']['accuracy']['mean'], 0.8)
  assert summary['gain']['kl'] == dict(mean=0, half_width=0)


def test_without_a_baseline_there_is_no_gain():
  runs = [results(0.9, 0.91), results(0.8, 0.83)]
  summary = repeats.summarise([dict(student=run['student']) for run in runs])
  assert set(summary) == {'student'}


def test_command_line_runs_every_seed(tmp_path, capsys):
  (tmp_path / 'tiny.py').write_text('\n'.join((
      'from haikd import config as config_lib',
      'def get_config():',
      '  config = config_lib.base()',
      '  config.seed = 5',
      '  config.baseline = True',
      '  config.steps = config.teacher.train.steps = 2',
      '  config.batch_size = 16',
      '  config.data.name = "synthetic"',
      '  config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)',
      '  config.student.options = dict(hidden=(4,))',
      '  return config',
  )))
  code = launch.main([
      'launch', f'--config={tmp_path / "tiny.py"}', f'--workdir={tmp_path}/run',
      '--seeds=2'
  ])
  captured = capsys.readouterr()
  assert code == 0, captured.err
  assert 'distilled - alone' in captured.out
  summary = json.loads((tmp_path / 'run/summary.json').read_text())
  each = [
      json.loads((tmp_path / f'run/seed-{s}/result.json').read_text())
      for s in (5, 6)
  ]
  assert each[0] != each[1]
  for name in ('teacher', 'student_alone', 'student'):
    np.testing.assert_allclose(
        summary[name]['cross_entropy']['mean'],
        np.mean([run[name]['cross_entropy'] for run in each]))
