"""A trace of some steps, from the config and from the command line."""

import gzip
import json

import jax
import pytest

from haikd.run import profiling
from haikd.run import training


def traced(folder):
  """Returns the numbers of the steps in a trace, as Perfetto reads it."""
  path, = folder.rglob('perfetto_trace.json.gz')
  assert list(path.parent.glob('*.xplane.pb'))  # What TensorBoard reads.
  events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  return sorted({int(x['args']['step_num']) for x in events
                 if x.get('name') == 'train' and 'step_num' in x['args']})


def test_steps_of_the_student_alone_are_traced(run, tmp_path):
  code, out, err = run('--config.profile.steps=(3, 5)', '--config.baseline')
  assert code == 0
  assert err.count('the trace of steps 3 to 5 is in ') == len(
      err.splitlines()) == 1
  assert str(tmp_path / 'run/profile') in err and 'student took ' in out
  assert traced(tmp_path / 'run') == [3, 4, 5]
  assert not list((tmp_path / 'run/teacher').glob('profile*'))
  # A new start has nothing to say.
  assert run('--config.profile.steps=(3, 5)', '--config.baseline')[2] == ''


@pytest.mark.parametrize('steps, expected', [
    (8, [8]), (12, [10, 11, 12]), (20, [10, 11, 12, 13, 14, 15])])
def test_flag_traces_steps_that_there_are(run, tmp_path, steps, expected):
  code, _, err = run('--profile', f'--config.steps={steps}')
  assert (code, len(err.splitlines())) == (0, 1)
  assert traced(tmp_path / 'run') == expected


def test_run_that_resumes_after_the_steps_says_so(run, tmp_path):
  assert run()[0] == 0
  code, _, err = run('--config.steps=12', '--config.profile.steps=(3, 5)')
  assert code == 0
  assert ('haikd: student: steps 3 to 5, config.profile.steps, are not traced, '
          'since training goes on from step 8.\n') in err
  assert not (tmp_path / 'run/profile').exists()


def test_training_that_ends_before_the_steps_says_so(
    run, tmp_path, monkeypatch):
  monkeypatch.setattr(training.best_lib.Best, 'is_over', True)
  code, _, err = run('--profile')
  assert code == 0
  assert ('steps 8 to 8, config.profile.steps, are not traced, since training '
          'ended after step 0.') in err
  assert not (tmp_path / 'run/profile').exists()


def test_training_that_ends_amid_the_steps_keeps_their_trace(
    run, tmp_path, monkeypatch):
  after = profiling.Profile.after

  def stop(self, step, result):
    after(self, step, result)
    if step == 4:
      raise KeyboardInterrupt

  monkeypatch.setattr(profiling.Profile, 'after', stop)
  code, _, err = run('--config.profile.steps=(3, 6)',
                     '--config.teacher.train.steps=2')
  assert code == 130
  assert 'the trace of steps 3 to 4 is in ' in err
  assert traced(tmp_path / 'run') == [3, 4]


@pytest.mark.parametrize('function, says', [
    ('start_trace', 'steps 3 to 6, config.profile.steps, are not traced, since '
     'JAX cannot trace them (No space)'),
    ('stop_trace', 'the trace of steps 3 to 6 could not be written (No '
     'space)')])
def test_training_goes_on_where_a_trace_cannot_be_written(
    run, monkeypatch, function, says):
  original = getattr(jax.profiler, function)

  def fail(*args, **options):
    if function == 'stop_trace':
      original()
    raise OSError('No space')

  monkeypatch.setattr(jax.profiler, function, fail)
  code, _, err = run('--config.profile.steps=(3, 6)',
                     '--config.teacher.train.steps=2')
  assert code == 0 and says in err and len(err.splitlines()) == 1


def test_going_back_amid_the_steps_ends_their_trace(
    tmp_path, monkeypatch, caplog):
  calls = []
  monkeypatch.setattr(jax.profiler, 'start_trace',
                      lambda *_, **__: calls.append('start'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  profile = profiling.Profile((3, 6), tmp_path, 'student')
  profile.start(2)
  with caplog.at_level('INFO', 'haikd'):
    for step in (3, 4):
      with profile.of_step(step):
        pass
      profile.after(step, None)
    profile.start(2)
    with profile.of_step(3):
      pass
    profile.close()
  assert calls == ['start', 'stop']
  assert ['the trace of steps 3 to 4 is in' in x.getMessage()
          for x in caplog.records] == [True]


@pytest.mark.parametrize('steps, rule', [
    ('(5, 3)', 'the first and the last step to trace, from 1, or ()'),
    ('(0, 3)', 'the first and the last step to trace'),
    ('(3,)', 'the first and the last step to trace'),
    ('(3.0, 4)', 'the first and the last step to trace'),
    ('(5, 9)', 'within the 8 steps of config.steps'),
])
def test_steps_that_cannot_be_traced_are_refused(run, steps, rule):
  code, _, err = run(f'--config.profile.steps={steps}')
  assert code == 2
  assert 'config.profile.steps must ' in err and rule in err
  assert len(err.splitlines()) == 1


def test_flag_is_of_training_alone(run):
  code, _, err = run('--profile', '--mode=eval')
  assert code == 2 and '--profile must be left out unless --mode=train' in err


def test_trace_of_a_bucket_is_uploaded(tmp_path, monkeypatch):
  (tmp_path / 'local/plugins').mkdir(parents=True)
  (tmp_path / 'local/plugins/x').write_bytes(b'trace')
  written = {}
  monkeypatch.setattr(profiling.paths, 'replace', lambda path, content: (
      written.update({str(path): content})))
  profiling._upload(tmp_path / 'local', tmp_path / 'remote')
  assert written == {str(tmp_path / 'remote/plugins/x'): b'trace'}
