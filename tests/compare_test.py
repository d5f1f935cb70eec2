"""Runs compared with one another, paired by seed."""

import json
import re
import sys

import numpy as np
import pytest
from scipy import stats

from haikd import compare
from haikd import config as config_lib
from haikd.run import comparison
from haikd.storage import files

FIRST = {0: 0.90, 1: 0.80, 2: 0.70, 3: 0.95}
SECOND = {1: 0.83, 2: 0.72, 3: 0.96, 4: 0.5}


def write(folder, scores, *, seeds=True, config=None, **more):
  """Writes finished runs with an accuracy for each seed."""
  for seed, accuracy in scores.items():
    workdir = folder / f'seed-{seed}' if seeds else folder
    workdir.mkdir(parents=True)
    row = dict(parameters=1, accuracy=accuracy, seconds=1.0, **more)
    files.write_json(workdir / 'result.json', dict(student=row))
    files.write_json(workdir / 'config.json', dict(
        config_lib.base().to_dict(), seed=seed, **(config or {})))
  return str(folder)


def unfinished(folder, seed):
  """Writes runs of which that of a seed has no result yet."""
  (folder / f'seed-{seed}').mkdir(parents=True)
  return write(folder, FIRST)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
  """Compares runs; returns (exit code, stdout, stderr)."""
  monkeypatch.chdir(tmp_path)

  def run(*args):
    code = compare.main(['compare', *args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err

  return run


def test_differences_are_those_of_a_paired_t_test(tmp_path, call):
  code, out, err = call(write(tmp_path / 'a', FIRST),
                        write(tmp_path / 'b', SECOND))
  assert code == 0
  first, second = (np.array([x[seed] for seed in (1, 2, 3)])
                   for x in (FIRST, SECOND))
  half = lambda interval: (interval[1] - interval[0]) / 2
  alone = [
      f'{100 * x.mean():.2f}% ± '
      f'{100 * half(stats.t.interval(0.95, 2, x.mean(), stats.sem(x))):.2f}'
      for x in (first, second)]
  paired = half(stats.ttest_rel(second, first).confidence_interval(0.95))
  gain = f'{100 * (second - first).mean():+.2f}% ± {100 * paired:.2f}'
  lines = [re.split(r'  +', line.strip()) for line in out.splitlines()]
  assert lines == [
      ['test, 3 seeds, 95 %', 'mean', '- first'], ['accuracy'],
      ['a', alone[0]], ['b', alone[1], gain],
      ['The differences seed by seed are in compare.png.']]
  assert err == (
      f'haikd: {tmp_path}/a has seeds that not all runs have, which are left '
      f'out: 0.\nhaikd: {tmp_path}/b has seeds that not all runs have, which '
      'are left out: 4.\n')
  assert (tmp_path / 'compare.png').read_bytes()[1:4] == b'PNG'


def test_any_runs_fit_80_columns(tmp_path, call):
  names = [f'{"a_very_long_name_" * 4}{end}' for end in ('', '_tail', 'x')]
  code, out, _ = call(*(
      write(tmp_path / name, FIRST, perplexity=123456.789, kl=np.inf)
      for name in names), '--out=plot.svg')
  assert code == 0
  assert max(map(len, out.splitlines())) <= 80
  shown = [line.split()[0] for line in out.splitlines() if '_name_' in line]
  assert len(set(shown)) == 3
  assert (tmp_path / 'plot.svg').read_text().count('<svg') == 1


def test_one_seed_has_no_interval(tmp_path, call):
  code, out, err = call(
      write(tmp_path / 'a', {3: 0.5}, seeds=False, kl=0.5),
      write(tmp_path / 'b', {3: 0.75}, seeds=False))
  assert code == 0
  assert re.search(r'^  b +75.00%  \+25.00%$', out, re.MULTILINE), out
  assert err == ('haikd: Metrics that not all runs have are left out: KL to '
                 'teacher.\n')


def test_what_may_differ_in_the_data_is_said(tmp_path, call):
  code, out, err = call(*(
      write(tmp_path / name, {0: 0.5}, config=dict(data=dict(
          name='text', source_dir=name,
          options=dict(tokenizer=name, length=8)))) for name in 'ab'))
  assert code == 0 and 'accuracy' in out
  assert err == ''.join(
      f"haikd: config.data.{field} differs, and the data may: {tmp_path}/a: "
      f"'a'; {tmp_path}/b: 'b'.\n"
      for field in ('source_dir', 'options.tokenizer'))


@pytest.mark.parametrize('make, code, match', (
    (lambda a: [a / 'none'], 2, 'two workdirs or more must be given; got 1'),
    (lambda a: [write(a / 'a', FIRST), str(a / 'b')], 3,
     'every workdir must be of a finished run; got .*b. without result.json'),
    (lambda a: [write(a / 'a', FIRST), write(a / 'b', {7: 0.5})], 2,
     'runs must have a seed in common; got .*a: 0, 1, 2, 3; .*b: 7'),
    (lambda a: [write(a / 'a', FIRST), write(a / 'a2', FIRST, config=dict(
        evaluation=dict(final='validation')))], 2,
     r'evaluated on the same split \(config.evaluation.final\); got .*test'),
    (lambda a: [write(a / 'a', FIRST), write(a / 'a2', FIRST, config=dict(
        data=dict(name='fashion')))], 2, 'evaluated on the same data set'),
    (lambda a: [write(a / name, FIRST, config=dict(data=dict(
        name='table', options=dict(files=name)))) for name in 'xy'], 2,
     r'on the same data \(config.data.options\); got .*x: .*; .*y: .*y'),
    (lambda a: [write(a / 'a', FIRST), str(a / 'a')], 2, 'must be given once'),
    (lambda a: [write(a / 'a', FIRST), write(a / 'b', FIRST),
                '--network=teacher'], 2,
     '--network must be in the results of every run; got .teacher.'),
    (lambda a: ['--network=pupil'], 2, '--network=pupil'),
    (lambda a: [write(a / 'a', FIRST), write(a / 'b', FIRST),
                '--out=none/x.svg'], 3,
     '--out must be a file that can be written; got none/x.svg '),
    (lambda a: [write(a / 'a', FIRST), unfinished(a / 'b', seed=4)], 3,
     'must have a result of each seed; got .*b. without that of 4'),
    (lambda a: ['a', 'b', '--out=x.html'], 2, 'must end in .png or .svg'),
))
def test_what_cannot_be_compared_is_refused(tmp_path, call, make, code, match):
  found, out, err = call(*map(str, make(tmp_path)))
  assert found == code and not out
  assert re.match(f'haikd: .*{match}', err), err
  assert err.count('\n') == 1


def test_without_matplotlib_the_table_is_there(tmp_path, call, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  code, out, _ = call(write(tmp_path / 'a', FIRST),
                      write(tmp_path / 'b', FIRST))
  assert code == 0 and 'accuracy' in out
  assert out.endswith("install matplotlib: pip install 'haikd[report]'.\n")


def test_runs_of_the_command_line_are_compared(run, tmp_path, call):
  for name, rate in (('slow', 0.0), ('fast', 0.1)):
    assert run(f'--config.optimizer.learning_rate={rate}', '--config.steps=2',
               workdir=name)[0] == 0
  code, out, err = call(str(tmp_path / 'slow'), str(tmp_path / 'fast'))
  assert (code, err) == (0, '')
  scores = [json.loads((tmp_path / name / 'result.json').read_text())['student']
            ['kl'] for name in ('slow', 'fast')]
  assert f'{scores[1] - scores[0]:+.4f}' in out


def test_names_lose_what_all_begin_with():
  assert comparison.short_names(['x/runs/a', 'x/runs/b/c']) == {
      'x/runs/a': 'a', 'x/runs/b/c': 'b/c'}
