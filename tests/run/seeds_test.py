"""Means and intervals over seeds."""

import json
import pathlib
import re

import numpy as np

from haikd import config as config_lib
from haikd import launch
from haikd.run import seeds as seeds_lib

GOLDEN = pathlib.Path(__file__).parents[1] / 'interop' / 'golden'


def results(alone, distilled):
  rest = dict(parameters=1, cross_entropy=0.5, kl=0.1, agreement=1.0,
              seconds=1.0)
  return dict(
      student_alone=dict(rest, accuracy=alone),
      student=dict(rest, accuracy=distilled))


def test_gain_is_paired_and_has_an_interval_of_students_t():
  summary = seeds_lib.summarise([results(0.90, 0.91), results(0.80, 0.83),
                                results(0.70, 0.72)])
  # Differences 1, 3 and 2 %: mean 2 %, s = 1 %; t(0.975, 2) = 4.302653 from a
  # printed table, so the half width is 4.302653 / sqrt(3) = 2.484138 %.
  gain = summary['gain']['accuracy']
  np.testing.assert_allclose(gain['mean'], 0.02)
  np.testing.assert_allclose(gain['half_width'], 0.02484138, rtol=1e-6)
  np.testing.assert_allclose(summary['student_alone']['accuracy']['mean'], 0.8)
  assert summary['gain']['kl'] == dict(mean=0, half_width=0)


def test_every_metric_has_a_gain():
  def run(start, alone, distilled):
    row = lambda x, **more: dict(
        parameters=1, perplexity=x, f1=x / 100, **more, seconds=1.0)
    return dict(
        teacher=row(10.0), student_start=row(start, kl=3.0),
        student_alone=row(alone), student=row(distilled, kl=1.0))

  summary = seeds_lib.summarise([run(90.0, 30.0, 20.0), run(90.0, 32.0, 24.0)])
  np.testing.assert_allclose(summary['gain']['perplexity']['mean'], -9)
  np.testing.assert_allclose(summary['gain']['f1']['mean'], -0.09)
  assert 'kl' not in summary['gain']  # The student alone has none.
  assert set(summary['student']) == {'perplexity', 'f1', 'kl'}
  np.testing.assert_allclose(
      summary['student_start']['perplexity']['mean'], 90)


def test_table_has_the_metrics_of_any_network(capsys):
  cell = lambda mean, half: dict(mean=mean, half_width=half)
  seeds_lib.print_summary({
      'student_start': dict(spearman=cell(0.5, 0.0)),
      'student': dict(spearman=cell(0.75, 0.125), accuracy=cell(0.5, 0.0125),
                      f1=cell(0.5, 0.5)),
      'gain': dict(spearman=cell(0.25, 0.125), accuracy=cell(0.0, 0.0)),
  }, seeds=3)
  lines = capsys.readouterr().out.splitlines()
  assert [re.split(r'  +', line.strip()) for line in lines] == [
      ['3 seeds, 95 %', 'accuracy', 'Spearman'],
      ['student at start', '–', '0.5000 ± 0.0000'],
      ['student distilled', '50.00% ± 1.25', '0.7500 ± 0.1250'],
      ['distilled - alone', '+0.00% ± 0.00', '+0.2500 ± 0.1250'],
  ]


def test_a_mean_with_an_undefined_value_is_undefined():
  summary = seeds_lib.summarise([
      dict(student=dict(spearman=wrong, kl=1.0)) for wrong in (np.nan, 0.5)])
  assert np.isnan(list(summary['student']['spearman'].values())).all()
  assert summary['student']['kl'] == dict(mean=1, half_width=0)


def test_without_a_baseline_there_is_no_gain():
  runs = [results(0.9, 0.91), results(0.8, 0.83)]
  summary = seeds_lib.summarise([dict(student=run['student']) for run in runs])
  assert set(summary) == {'student'}


def test_the_page_of_all_seeds_names_the_networks_of_weights(
    tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(
      seeds_lib.job, 'train', lambda *args: results(0.9, 0.91))
  monkeypatch.setattr(seeds_lib.report, 'write_of_seeds',
                      lambda config, *args: seen.append(config))
  config = config_lib.base()
  config.teacher.init = config.student.init = f'hf:{GOLDEN / "qwen2"}'
  config.data.name = 'tokens'
  seeds_lib.train(config, tmp_path, 2)
  assert [x.student.model for x in seen] == ['llama']


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
