"""Writer: rows, TensorBoard events, console and the table of results."""

import io
import json
import math
import pathlib
import re

import numpy as np
import pytest
import rich.console
from tensorboard.backend.event_processing import event_accumulator

from haikd.core import checks
from haikd.run import console as console_lib
from haikd.run import writer
from haikd.storage import files
from haikd.storage import paths


def plain():
  return rich.console.Console(file=io.StringIO(), force_terminal=False)


def terminal(width=120):
  return rich.console.Console(
      file=io.StringIO(), force_terminal=True, width=width)


def rows(workdir):
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  return [json.loads(line, parse_constant=pytest.fail)
          for line in text.splitlines()]


def write(workdir, *, truncate=None, steps=(), console=None):
  with writer.open_writer(
      workdir, total_steps=10, console=console or plain()) as out:
    if truncate is not None:
      out.truncate(truncate)
    for step in steps:
      out.write(step, 'train', {'loss/kl': step / 2})


def test_each_row_is_on_disk_once_written(tmp_path):
  with writer.open_writer(
      tmp_path / 'run', total_steps=10, console=plain()) as out:
    out.write(np.int32(3), 'train', {'loss/kl': np.float32(0.5), 'loss': 1})
    assert rows(tmp_path / 'run') == [
        {'step': 3, 'split': 'train', 'loss/kl': 0.5, 'loss': 1.0}]
    out.write(3, 'eval/validation', {'accuracy': 0.25})
    assert rows(tmp_path / 'run')[1] == {
        'step': 3, 'split': 'eval/validation', 'accuracy': 0.25}


def test_values_that_are_not_finite_are_valid_json_and_read_back(tmp_path):
  with writer.open_writer(tmp_path, total_steps=1, console=plain()) as out:
    out.write(1, 'train', {'a': math.nan, 'b': math.inf, 'c': -math.inf})
  row = rows(tmp_path)[0]
  assert (row['a'], row['b'], row['c']) == ('NaN', 'Infinity', '-Infinity')
  assert math.isnan(float(row['a']))
  assert (float(row['b']), float(row['c'])) == (math.inf, -math.inf)


def test_a_resumed_run_has_each_step_once(tmp_path):
  write(tmp_path, truncate=0, steps=[1, 2, 3, 4])
  write(tmp_path, truncate=2, steps=[3, 4, 5])
  assert [row['step'] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('cut', range(1, 40, 6))
def test_an_incomplete_last_line_is_removed(tmp_path, cut):
  write(tmp_path, steps=[1, 2, 3])
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(path.read_bytes()[:-cut])  # As a kill may leave it.
  write(tmp_path, truncate=2, steps=[3])
  assert [row['step'] for row in rows(tmp_path)] == [1, 2, 3]
  assert {p.name for p in tmp_path.iterdir() if 'tfevents' not in p.name} == {
      'metrics.jsonl'}


def test_a_broken_line_before_the_last_is_refused(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
  with pytest.raises(
      checks.DataError,
      match='^line 2 of .*metrics.jsonl must be a JSON object; got .*{"ste'):
    write(tmp_path, truncate=3)


@pytest.mark.parametrize('line, value', [
    ('{"split": "train"}', 'None'), ('{"step": "2"}', "'2'")])
def test_a_line_without_a_step_is_refused(tmp_path, line, value):
  (tmp_path / 'metrics.jsonl').write_text(f'{{"step": 1}}\n{line}\n')
  with pytest.raises(checks.DataError,
                     match='^line 2 of .*metrics.jsonl must have an integer '
                     f'step; got {value}. Remove'):
    write(tmp_path, truncate=3)


def test_truncating_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
  write(tmp_path, steps=[2, 1, 3])  # What stays is not what comes first.

  def fail(*unused):
    raise OSError('disk full')

  monkeypatch.setattr(paths.os, 'replace', fail)
  with pytest.raises(checks.DataError, match='^--workdir must .*disk full'):
    write(tmp_path, truncate=1)
  assert [row['step'] for row in rows(tmp_path)] == [2, 1, 3]


def test_tensorboard_reads_tags_and_forgets_the_lost_steps(tmp_path):
  write(tmp_path, steps=[1, 2, 3])
  write(tmp_path, truncate=1, steps=[2])
  events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
  assert events.Tags()['scalars'] == ['train/loss/kl']
  assert [(event.step, event.value)
          for event in events.Scalars('train/loss/kl')] == [(1, 0.5), (2, 1.0)]


def test_start_of_a_finished_run_leaves_no_event_file(tmp_path):
  write(tmp_path, truncate=0, steps=[1, 2])
  before = sorted(tmp_path.iterdir())
  write(tmp_path, truncate=2)
  assert sorted(tmp_path.iterdir()) == before


def test_other_processes_write_nothing(tmp_path):
  console = plain()
  with writer.open_writer(
      tmp_path / 'run', total_steps=2, console=console, enabled=False) as out:
    out.truncate(0)
    out.progress(1)
    out.write(1, 'train', {'loss': 1.0})
  assert not (tmp_path / 'run').exists()
  assert not console.file.getvalue()


def test_plain_lines_name_losses_speed_and_time_left(tmp_path, monkeypatch):
  clock = iter([100.0, 104.0])
  monkeypatch.setattr(console_lib.time, 'monotonic', lambda: next(clock))
  console = plain()
  with writer.open_writer(
      tmp_path, total_steps=10, title='student', console=console) as out:
    out.truncate(3)
    out.write(4, 'train', {'loss': 2.0})
    out.write(
        6, 'train', {
            'loss': 1.5,
            'loss/kl': 0.25,
            'grad_norm': 3.0,
            'examples_per_second': 1234.4
        })
    out.write(6, 'eval/validation', {'accuracy': 0.5, 'kl': 0.125})
  # Two steps in four seconds leave eight seconds for the other four.
  assert console.file.getvalue() == (
      'student goes on from step 3\n'
      'student 4/10  train  loss 2\n'
      'student 6/10  train  loss 1.5  kl 0.25  1,234 examples/s  left 0:00:08\n'
      'student 6/10  eval/validation  accuracy 0.5  kl 0.125\n')


def test_a_terminal_gets_a_bar_and_lines_above_it(tmp_path):
  console = terminal()
  with writer.open_writer(
      tmp_path, total_steps=10, title='student', console=console) as out:
    out.truncate(2)
    out.progress(4)
    out.write(5, 'train', {'loss': 0.125, 'examples_per_second': 10.0})
    out.write(5, 'eval/test', {'accuracy': 0.5})
    out.write(5, 'eval/[b]', {'accuracy': 0.5})
  text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', console.file.getvalue())
  last = text.splitlines()[-1]
  assert 'goes on from step 2' in text
  assert 'step 5  eval/test  accuracy 0.5' in text
  assert 'step 5  eval/[b]  accuracy' in text
  assert last.startswith('student')
  assert ' 5/10 ' in last
  assert '10 examples/s loss 0.125' in last


def test_80_columns_keep_the_bar_on_one_line_with_speed_and_loss(tmp_path):
  console = terminal(width=80)
  with writer.open_writer(tmp_path, total_steps=100_000, title='student alone',
                          console=console) as out:
    shown = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', console.file.getvalue())
    out.write(55_555, 'train', {'loss': 0.125, 'examples_per_second': 1234567,
                                **{f'loss/term_{i}': 0.5 for i in range(20)}})
  text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', console.file.getvalue())
  last = text.splitlines()[-1]
  assert last.startswith('student alone') and len(last) <= 80
  assert ' 55555/100000 ' in last and '1,234,567/s loss 0.1' in last
  assert 'comp' in shown


RESULTS = {
    'teacher': dict(
        parameters=1234567,
        accuracy=0.98765,
        cross_entropy=0.1,
        kl=0.0,
        agreement=1.0,
        seconds=12.34),
    'student': dict(parameters=1234, accuracy=math.nan, kl=None, seconds=None),
}


def test_results_are_written_atomically(tmp_path):
  writer.write_results(tmp_path, RESULTS)
  result = files.read_json(tmp_path / 'result.json')
  assert result['teacher'] == RESULTS['teacher']
  assert result['student']['accuracy'] == 'NaN'
  assert [p.name for p in tmp_path.iterdir()] == ['result.json']


@pytest.mark.parametrize('split, name', [
    ('test', 'eval-test.json'),
    ('test[:64]', 'eval-test__64_.json'),
    ('test[64:]', 'eval-test_64__.json'),
    ('../a b', 'eval-.._a_b.json'),
])
def test_evaluations_have_separate_files(tmp_path, split, name):
  assert writer.evaluation_file(split) == name
  writer.write_results(tmp_path, RESULTS, name)
  assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_table_names_its_split():
  console = plain()
  row = dict(parameters=3)
  writer.print_table(dict(student=row), split='test[:9]', console=console)
  assert console.file.getvalue().split()[0] == 'test[:9]'


def test_names_in_a_drawn_table_are_no_markup():
  console = terminal()
  console_lib.table([['a[b]', ':smile:']], ['[x]', 'mean'], console=console)
  for text in ('a[b]', ':smile:', '[x]'):
    assert text in console.file.getvalue()


def test_the_plain_table_is_aligned_and_shows_dashes():
  console = plain()
  writer.print_table(RESULTS, console=console)
  lines = console.file.getvalue().splitlines()
  assert [re.split(r'  +', line.strip()) for line in lines] == [
      [
          'parameters', 'accuracy', 'cross-entropy', 'KL to teacher',
          'agreement', 'seconds'
      ],
      [
          'teacher', '1,234,567', '98.77%', '0.1000', '0.0000', '100.00%',
          '12.3'
      ],
      ['student alone', '–', '–', '–', '–', '–', '–'],
      ['student distilled', '1,234', 'nan%', '–', '–', '–', '–'],
  ]
  assert len({len(line) for line in lines}) == 1


def cells(results):
  console = plain()
  writer.print_table(results, console=console)
  return [re.split(r'  +', line.strip())
          for line in console.file.getvalue().splitlines()]


def test_columns_are_the_metrics_of_any_network_in_a_fixed_order():
  language = dict(parameters=9, top5_agreement=0.5, agreement=0.25, kl=0.125,
                  perplexity=12.345, cross_entropy=2.5, accuracy=0.75, f1=0.5)
  heading, _, student = cells(dict(student=language))
  assert heading == ['parameters', 'accuracy', 'cross-entropy', 'perplexity',
                     'KL to teacher', 'agreement', 'top-5 agreement']
  assert student == ['student distilled', '9', '75.00%', '2.5000', '12.35',
                     '0.1250', '25.00%', '50.00%']
  heading, teacher, *_, student = cells(dict(
      teacher=dict(cosine=1.0, spearman=0.5), student=dict(pearson=-0.25)))
  assert heading == ['cosine to teacher', 'Spearman', 'Pearson']
  assert teacher == ['teacher', '1.0000', '0.5000', '–']
  assert student == ['student distilled', '–', '–', '-0.2500']


def test_a_student_that_inherits_has_a_row_for_its_start():
  row = dict(kl=1.0)
  assert [line[0] for line in cells(dict(student_start=row, student=row))] == [
      'KL to teacher', 'student at start', 'student alone',
      'student distilled']
  assert [line[0] for line in cells(dict(student=row))] == [
      'KL to teacher', 'student alone', 'student distilled']


@pytest.mark.parametrize('make', (terminal, plain))
@pytest.mark.parametrize('more', ({}, dict(
    perplexity=1000.0, top5_agreement=0.5, top5=0.5)))
def test_the_table_fits_80_columns(make, more, monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  console = make(80) if make is terminal else make()
  results = {name: row | more for name, row in RESULTS.items()}
  writer.print_table(results, split='test', console=console)
  lines = console.file.getvalue().splitlines()
  assert max(map(len, lines)) <= 80
  # Headings are on two lines; what does not fit is a second table.
  assert lines[0].split() == ['cross-', 'KL', 'to'] and lines[1].startswith(
      'test               parameters  accuracy  entropy  ')
  assert ('' in lines) == bool(more)
  assert sum(line.startswith('teacher') for line in lines) == 1 + bool(more)
  joined = ' '.join(' '.join(lines).split())
  for cell in ('1,234,567', '98.77%', '100.00%', '12.3'):
    assert cell in joined


def test_a_terminal_gets_a_drawn_table():
  console = terminal()
  writer.print_table(RESULTS, console=console)
  text = console.file.getvalue()
  assert '┃' in text and 'student distilled' in text and '98.77%' in text


def test_only_json_can_be_written(tmp_path):
  with pytest.raises(TypeError,
                     match='value must be a number, .* of them; got <object'):
    files.write_json(tmp_path / 'x.json', {'a': object()})
  assert not list(tmp_path.iterdir())


def test_a_narrow_bar_without_a_speed_shows_none(tmp_path):
  console = terminal(width=80)
  with writer.open_writer(tmp_path, total_steps=10, title='student',
                          console=console) as out:
    out.write(5, 'train', {'loss': 0.125})
  assert '/s' not in console.file.getvalue()
