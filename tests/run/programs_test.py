"""What was compiled, how long it took, and what the cache has saved."""

import itertools
import json
import threading

import jax
import jax.numpy as jnp
import pytest

from haikd.processes import watchdog
from haikd.run import job
from haikd.run import programs
from haikd.run import training

LARGE = ('training step of ', 'evaluation of ', 'initialisation of ')


@pytest.fixture
def events(monkeypatch):
  """Sends events as JAX does, while a record is open."""
  record = programs.Record()

  def send(kind, seconds, name):
    jax.monitoring.record_event_duration_secs(
        getattr(programs, kind), seconds, fun_name=name)

  with record:
    yield record, send


def test_program_gets_the_seconds_of_its_parts(events):
  record, send = events
  send('_TRACED', 0.5, 'train_step')  # Called by the one below.
  send('_TRACED', 2.0, 'train_step')
  send('_LOWERED', 3.0, 'jit(train_step)')
  send('_TRACED', 1.0, 'other')
  send('_LOWERED', 0.25, 'jit(other)')
  send('_COMPILED', 0.5, 'jit(other)')
  jax.monitoring.record_event(programs._HIT)
  with programs.of('student'):  # As a thread does that compiles it later.
    send('_COMPILED', 5.0, 'jit(train_step)')
  assert record.programs[0] == ('other', 1.0, 0.25, 0.5, False)
  assert record.programs[1] == (
      'training step of student', 0.0, 0.0, 5.0, True)


def test_network_is_that_of_the_thread(events):
  record, send = events

  def compile_ahead():
    with programs.of('teacher'):
      send('_COMPILED', 1.0, 'jit(eval_step)')

  with programs.of('student'):
    thread = threading.Thread(target=compile_ahead)
    thread.start()
    thread.join()
    send('_COMPILED', 1.0, 'jit(eval_step)')
  send('_COMPILED', 1.0, 'jit(eval_step)')
  assert [x.name for x in record.programs] == [
      'evaluation of teacher', 'evaluation of student', 'evaluation']


def test_closed_record_gets_nothing_more():
  with programs.Record() as record:
    pass
  jax.monitoring.record_event_duration_secs(
      programs._COMPILED, 1.0, fun_name='jit(x)')
  assert not record.programs


def test_table_sums_up_small_programs():
  one = programs.Program('init', 1.0, 2.0, 3.0, True)
  small = programs.Program('add', 0.01, 0.02, 0.03, False)
  assert programs.rows([small, one, small]) == [
      ['init', '1.00', '2.00', '3.00', 'yes'],
      ['2 small ones', '0.02', '0.04', '0.06', '']]


@pytest.mark.parametrize('cached, words', [
    ((False, False), '2 programs were compiled in 6.0 s'),
    ((True, False), '1 programs were compiled in 3.0 s, '
     '1 programs came from the cache in 3.0 s'),
    ((True, True), '2 programs came from the cache in 6.0 s'),
])
def test_run_says_what_came_from_the_cache(cached, words):
  record = programs.Record()
  record.programs = [programs.Program('x', 1, 2, 3.0, x) for x in cached]
  record.programs.append(programs.Program('small', 0, 0, 0.01, False))
  assert record.describe() == words


def test_compiling_in_the_main_thread_is_a_phase_of_its_own(events):
  _, send = events
  before = watchdog.spent()
  with watchdog.during(watchdog.STEP, ''):
    send('_TRACED', 4.0, 'x')
    send('_LOWERED', 10.0, 'jit(x)')
    send('_COMPILED', 20.0, 'jit(x)')
    thread = threading.Thread(target=send, args=('_COMPILED', 50.0, 'jit(x)'))
    thread.start()
    thread.join()
  after = watchdog.spent()
  spent = {phase: after.get(phase, 0.0) - before.get(phase, 0.0)
           for phase in (watchdog.STEP, watchdog.COMPILATION)}
  assert spent == {watchdog.STEP: pytest.approx(-34.0, abs=3),
                   watchdog.COMPILATION: pytest.approx(34.0, abs=3)}


def test_compiled_function_is_recorded():
  with programs.Record() as record:
    jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.arange(7.0))
  program, = (x for x in record.programs if x.name == '<lambda>')
  assert min(program[1:4]) > 0


@pytest.fixture
def records(monkeypatch):
  """The records of all jobs."""
  made = []
  monkeypatch.setattr(job.programs, 'Record', lambda make=programs.Record: (
      made.append(make()), made[-1])[1])
  return made


@pytest.mark.report
def test_second_seed_and_resumed_run_compile_no_large_program(
    run, records, tmp_path, monkeypatch):
  """The test's cache of compiled programs has all of them after the first."""
  flags = ('--config.baseline', '--config.steps=4', '--config.log_every=1',
           '--config.checkpoint_every=1')
  requested, steps = training.distributed.stop_requested, itertools.count(1)

  def kill():
    if next(steps) == 3 * 4:  # Of three trainings of 4 steps.
      raise KeyboardInterrupt
    return requested()

  with monkeypatch.context() as patch:
    patch.setattr(training.distributed, 'stop_requested', kill)
    assert run(*flags, workdir='first')[0] == 130
  for changes, workdir in (('--config.seed=1', 'seed'), ('--debug', 'first')):
    code, out, err = run(*flags, changes, workdir=workdir)
    assert code == 0, err
    line, = (x for x in out.splitlines() if ' the cache in ' in x or (
        ' were compiled in ' in x))
    assert line == records[-1].describe()
  names = [[x.name for x in record.programs if x.name.startswith(LARGE)]
           for record in records]
  titles = ('teacher', 'student alone', 'student')
  for part in LARGE[:2]:
    assert {part + title for title in titles} <= set(names[1])
  assert 'training step of student' in names[2]
  assert 'training step of teacher' not in names[2]
  for record in records[1:]:
    assert not [x.name for x in record.programs
                if x.name.startswith(LARGE) and not x.is_cached]
  page = (tmp_path / 'seed/report.html').read_text()
  for text in ('<h2>Time</h2>', 'training step of student', 'examples/s'):
    assert text in page


@pytest.mark.parametrize('mesh', ['--config.mesh.fsdp=2',
                                  '--config.microbatches=2'])
def test_seed_of_dropout_is_no_constant_of_a_program(
    run, records, tmp_path, mesh):
  (tmp_path / 'dropout.py').write_text((tmp_path / 'tiny.py').read_text(
  ).replace('return', '''config.student.model = 'vit'
  config.student.options = dict(
      width=8, depth=1, heads=1, patch_size=2, dropout=0.5)
  return'''))
  for seed in (0, 1):
    code, _, err = run(mesh, '--config.steps=2', f'--config.seed={seed}',
                       workdir=f'{seed}', config='dropout.py')
    assert code == 0, err
  assert all(x.is_cached for x in records[1].programs
             if x.name.startswith(LARGE))
  losses = [json.loads((tmp_path / f'{seed}/metrics.jsonl').open().readline())
            for seed in (0, 1)]
  assert losses[0]['loss'] != losses[1]['loss']


@pytest.mark.report
def test_phases_of_each_network_are_in_the_report(run, tmp_path):
  assert run()[0] == 0
  page = (tmp_path / 'run/report.html').read_text()
  rows = [json.loads(line) for line in (
      tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  time, = (row for row in rows if row['split'] == 'time')
  assert f'<td>{time["saving"]:,.1f}</td>' in page
