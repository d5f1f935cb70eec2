"""A workdir: the config that owns it, and its lock."""

import errno
import json
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.run import workdir
from haikd.storage import checkpointer


def make_config(**fields):
  config = config_lib.base()
  config.plugins = ('one', 'two')
  config.losses.extra = dict(loss='huber', weight=0.5)
  config.update(fields)
  return config


def test_claim_writes_the_config_and_accepts_it_again(tmp_path):
  folder = tmp_path / 'a' / 'b'
  workdir.claim(folder, make_config())
  written = json.loads((folder / 'config.json').read_text())
  assert written['plugins'] == ['one', 'two']
  assert written['losses'] == {'extra': {'loss': 'huber', 'weight': 0.5}}
  assert written['student']['init'] is None
  workdir.claim(folder, make_config(), create=False)
  assert [p.name for p in folder.iterdir()] == ['config.json']


def test_a_dict_in_place_of_a_number_is_accepted_again(tmp_path):
  """Schedules and adaptive layers: their default is no field beside theirs."""
  config = make_config()
  config.distillation.temperature = dict(kind='constant', value=2.0)
  config.distillation.feature_match_layers = dict(kind='adaptive')
  config.teacher.init = str(tmp_path / 'middle')
  workdir.claim(tmp_path, config)
  save(tmp_path)
  workdir.claim(tmp_path, config)
  moved = tmp_path.rename(tmp_path.parent / 'moved')
  config.teacher.init = str(moved / 'middle')  # It moves along.
  workdir.claim(moved, config, create=False)


def save(folder):
  """Saves a state without arrays."""
  with checkpointer.Checkpointer(folder, keep=1) as opened:
    opened.save(7, (), {}, {})


def test_workdir_has_no_owner_until_a_checkpoint_is_saved(tmp_path):
  workdir.claim(tmp_path, make_config(batch_size=5))
  (tmp_path / 'metrics.jsonl').write_text('')
  workdir.claim(tmp_path, make_config(batch_size=6))
  assert json.loads((tmp_path / 'config.json').read_text())['batch_size'] == 6


@pytest.mark.parametrize('part', ['.', 'teacher', 'baseline'])
def test_workdir_with_a_checkpoint_keeps_its_owner(tmp_path, part):
  workdir.claim(tmp_path, make_config(batch_size=5))
  save(tmp_path / part)
  with pytest.raises(checks.DataError,
                     match='^--workdir must belong to this config; got '
                     'config.batch_size=6 where it has 5'):
    workdir.claim(tmp_path, make_config(batch_size=6))
  assert json.loads((tmp_path / 'config.json').read_text())['batch_size'] == 5


def test_claim_of_another_config_for_reading_is_refused(tmp_path):
  workdir.claim(tmp_path, make_config(batch_size=5))
  with pytest.raises(checks.DataError, match='batch_size=6 where it has 5'):
    workdir.claim(tmp_path, make_config(batch_size=6), create=False)


def test_claim_names_the_fields_that_differ(tmp_path):
  workdir.claim(tmp_path, make_config())
  save(tmp_path)
  config = make_config(task='dense', seed=1)
  config.losses = {}
  with pytest.raises(
      checks.DataError,
      match='must belong to this config; got '
      "config.losses.extra.loss='nothing' where it has 'huber', "
      "config.losses.extra.weight='nothing' where it has 0.5, "
      'config.seed=1 where it has 0 and 1 more in .*/config.json. Choose'):
    workdir.claim(tmp_path, config)


def test_free_fields_may_differ(tmp_path):
  workdir.claim(tmp_path, make_config())
  save(tmp_path)
  config = make_config(log_every=3)
  config.evaluation.split = 'other'
  workdir.claim(tmp_path, config, free=('log_every', 'evaluation'))
  config.log_every = 4
  with pytest.raises(checks.DataError, match='log_every=4 where it has 3'):
    workdir.claim(tmp_path, config, free=('log', 'evaluation'))


def test_claim_refuses_what_it_cannot_use(tmp_path):
  with pytest.raises(checks.DataError,
                     match='^--workdir must be that of a run; got .*no config'):
    workdir.claim(tmp_path, make_config(), create=False)
  save(tmp_path)
  (tmp_path / 'config.json').write_text('{"steps": ')
  with pytest.raises(checks.DataError,
                     match='config.json must hold JSON; got JSONDecodeError: '):
    workdir.claim(tmp_path, make_config())
  (tmp_path / 'file').write_text('')
  with pytest.raises(checks.DataError, match='a folder that can be written'):
    workdir.claim(tmp_path / 'file', make_config())
  config = make_config()
  config.losses.extra.options = {'function': len}
  with pytest.raises(checks.ConfigError,
                     match='^config must hold only what JSON can; .*built-in'):
    workdir.claim(tmp_path / 'new', config)


@pytest.mark.parametrize('name, text', (
    ('config.json', '{"model_type": "bert"}'), ('config.json', 'steps: 3'),
    ('metrics.jsonl', '{"step": 3}'), ('report.html', '')))
def test_what_others_have_written_is_not_overwritten(tmp_path, name, text):
  (tmp_path / name).write_text(text)
  for use in (lambda: workdir.claim(tmp_path, make_config()),
              lambda: workdir.check_owner(tmp_path, make_config()),
              lambda: workdir.lock(tmp_path).__enter__()):
    with pytest.raises(checks.DataError,
                       match=f'whose {name} no run has|must hold JSON'):
      use()
  assert [(x.name, x.read_text()) for x in tmp_path.iterdir()] == [(name, text)]


def test_two_runs_at_once_are_refused(tmp_path):
  with workdir.lock(tmp_path / 'run'):
    with pytest.raises(checks.DataError,
                       match='--workdir must be used by one run at a time'):
      with workdir.lock(tmp_path / 'run'):
        pytest.fail('it got the lock')
    with workdir.lock(tmp_path / 'other'):
      pass
  with workdir.lock(tmp_path / 'run'):
    pass


def test_lock_ends_with_a_process_that_is_killed(tmp_path):
  script = textwrap.dedent("""
      import sys, time
      from haikd.run import workdir
      with workdir.lock(sys.argv[1]):
        print('locked', flush=True)
        time.sleep(60)
  """)
  with subprocess.Popen([sys.executable, '-c', script, tmp_path],
                        stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == b'locked\n'
    with pytest.raises(checks.DataError, match='another is at work'):
      with workdir.lock(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
  with workdir.lock(tmp_path):
    pass


def test_lock_is_released_after_an_error(tmp_path):
  with pytest.raises(KeyError):
    with workdir.lock(tmp_path):
      raise KeyError
  with workdir.lock(tmp_path):
    pass


def test_filesystem_without_locks_is_used_without_a_lock(tmp_path, monkeypatch):

  def unsupported(*unused):
    raise OSError(errno.ENOTSUP, 'Operation not supported')

  monkeypatch.setattr(workdir.fcntl, 'flock', unsupported)
  with workdir.lock(tmp_path):
    entered = True
  assert entered


def test_only_the_first_process_locks(tmp_path, monkeypatch):
  # On the other processes, `first` returns the answer of process 0.
  monkeypatch.setattr(workdir.distributed, 'first', lambda function: None)
  with workdir.lock(tmp_path), workdir.lock(tmp_path):
    assert not list(pathlib.Path(tmp_path).iterdir())


def test_lock_needs_a_folder_to_write_to(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(checks.DataError, match='a folder that can be written'):
    with workdir.lock(tmp_path / 'file'):
      pass


def test_any_config_goes_on_where_that_is_allowed_and_is_recorded(
    tmp_path, caplog):
  caplog.set_level('INFO', 'haikd')
  workdir.claim(tmp_path, make_config())
  save(tmp_path)
  workdir.claim(tmp_path, make_config(log_every=7))  # A free field.
  assert 'another config' not in caplog.text
  config = make_config(log_every=7, seed=1)
  config.losses = {}
  workdir.claim(tmp_path, config, free=workdir.ALL_FIELDS)
  assert (f'{tmp_path} goes on with another config: '
          "config.losses.extra.loss='nothing' where it has 'huber', "
          "config.losses.extra.weight='nothing' where it has 0.5, "
          'config.seed=1 where it has 0. config_changes') in caplog.text
  rows = [json.loads(line) for line in (
      tmp_path / 'config_changes.jsonl').read_text().splitlines()]
  default = make_config().log_every
  assert rows == [
      dict(step=7, changes=dict(log_every=[default, 7])),
      dict(step=7, changes={'losses.extra.loss': ['huber', 'nothing'],
                            'losses.extra.weight': [0.5, 'nothing'],
                            'seed': [0, 1]})]
  workdir.claim(tmp_path, config)  # It owns the workdir now.
  assert len((tmp_path / 'config_changes.jsonl').read_text().splitlines()) == 2
