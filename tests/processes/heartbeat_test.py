"""Which process is lost, when, and how the others end because of it.

Intervals pass at once, and the coordinator is a dict; `distributed_test` has
real processes.
"""

import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from haikd.processes import heartbeat


class Coordinator:
  """The key-value store of JAX's coordinator."""

  def __init__(self):
    self.store = {}
    self.gone = False

  def _answer(self):
    if self.gone:
      raise RuntimeError('UNAVAILABLE')

  def key_value_set(self, key, value, allow_overwrite=False):
    self._answer()
    if key in self.store and not allow_overwrite:
      raise RuntimeError('ALREADY_EXISTS')
    self.store[key] = value

  def key_value_try_get(self, key):
    self._answer()
    if key not in self.store:
      raise RuntimeError('NOT_FOUND')
    return self.store[key]

  def key_value_dir_get(self, prefix):
    self._answer()
    return [(key, value) for key, value in self.store.items()
            if key.startswith(f'{prefix}/')]


class Intervals:
  """Replaces the event that both threads wait for, a second at a time.

  Attributes:
    passed: the number of intervals that have passed.
  """

  def __init__(self, number, happens):
    self.passed = 0
    self._number = number
    self._happens = happens
    self._set = False

  def wait(self, seconds):
    assert seconds == 1
    if self._set or self.passed == self._number:
      return True
    self.passed += 1
    self._happens(self.passed)
    return False

  def is_set(self):
    return self._set

  def set(self):
    self._set = True


class Ended(BaseException):
  """Raised instead of ending the process."""


@pytest.fixture
def slept(monkeypatch):
  """Returns the list of sleeps, in seconds; `os._exit` raises Ended."""
  seconds = []
  monkeypatch.setattr(heartbeat.time, 'sleep', seconds.append)

  def leave(code):
    raise Ended(code)

  monkeypatch.setattr(heartbeat.os, '_exit', leave)
  return seconds


@pytest.fixture
def make(monkeypatch, slept):
  """Returns a function that makes a Watch whose threads do not run."""

  def build(process, count=3, intervals=100, happens=lambda *unused: None):
    with monkeypatch.context() as patch:
      patch.setattr(heartbeat.threading.Thread, 'start', lambda self: None)
      made = heartbeat.Watch(Coordinator(), process, count)
    made._stopped = Intervals(intervals, lambda passed: happens(made, passed))
    return made

  return build


def beat(made, process, count):
  made._client.store[f'haikd/beat/{process}'] = str(count)


def ends(run, capsys):
  """Returns exit code and output on standard error."""
  with pytest.raises(Ended) as error:
    run()
  return error.value.args[0], capsys.readouterr().err


@pytest.mark.parametrize('last, suspected, after', [
  (0, False, 31),  # It has never sent a heartbeat.
  (5, False, 5 + 31),
  (5, True, 5 + 11),
])
def test_silent_process_is_lost_and_others_are_not(
    make, capsys, last, suspected, after):

  def happens(made, passed):
    beat(made, 1, passed)
    if passed <= last:
      beat(made, 2, passed)
    elif suspected:
      made.suspect()

  made = make(0, happens=happens)
  code, err = ends(made._talk, capsys)
  seconds = 10 if suspected else 30
  what = f'no sign of life from process 2 for {seconds} seconds'
  # The first check is before the first interval.
  assert made._stopped.passed == (after if last else after - 1)
  assert code == 6 and made._client.store['haikd/failure'] == what
  assert err == (
      f'haikd [0]: all processes of a run must stay alive; got {what}. Start '
      'all again to go on from the newest checkpoint.\n')


def test_processes_with_rare_heartbeats_are_not_lost(make, capsys):

  def happens(made, passed):
    for process in (1, 2):
      if passed % 30 == 0:
        beat(made, process, passed)

  made = make(0, intervals=200, happens=happens)
  made._talk()
  assert made._stopped.passed == 200 and not capsys.readouterr().err


def test_each_heartbeat_differs_from_the_last(make):
  seen = []
  made = make(2, intervals=3, happens=lambda made, passed: seen.append(
      made._client.store['haikd/beat/2']))
  made._talk()
  assert len(set(seen)) == 3


def test_only_process_0_checks_the_others(make):
  made = make(1)
  made._talk()
  assert made._stopped.passed == 100 and made.failure() is None


@pytest.mark.parametrize('process', [0, 1])
def test_reported_failure_ends_the_others(make, capsys, process):

  def happens(made, passed):
    for other in (1, 2):
      beat(made, other, passed)
    if passed == 4:
      made._client.store['haikd/failure'] = 'process 2, which ended'

  made = make(process, happens=happens)
  code, err = ends(made._talk, capsys)
  assert (code, made._stopped.passed) == (6, 4)
  assert f'haikd [{process}]: ' in err and 'got process 2, which ended.' in err


@pytest.mark.parametrize('suspected, after', [(False, 31), (True, 11)])
def test_coordinator_that_does_not_answer_is_lost(
    make, capsys, suspected, after):
  made = make(1)
  made._client.gone = True
  if suspected:
    made.suspect()
  code, err = ends(made._wait, capsys)
  assert (code, made._stopped.passed) == (6, after)
  assert f'got no sign of life from process 0 for {after - 1} seconds' in err


def test_every_answer_of_the_coordinator_counts(make):
  made = make(1, intervals=200)
  talk = made._talk

  def happens(passed):  # Every 30 intervals the other thread talks.
    if passed % 30 == 0:
      before, made._stopped = made._stopped, Intervals(0, None)
      talk()
      made._stopped = before

  made._stopped = Intervals(200, happens)
  made._wait()
  assert made._stopped.passed == 200


def test_silent_coordinator_does_not_end_the_talking_thread(make):
  made = make(1)
  made._client.gone = True
  made._talk()
  assert made._stopped.passed == 100


@pytest.mark.parametrize('process, stays', [(0, [3]), (1, [])])
def test_process_that_leaves_reports_why_and_process_0_stays_a_while(
    make, slept, process, stays):
  made = make(process)
  with pytest.raises(Ended, match='^4$'):
    made.leave(4, 'one')
  assert made.failure() == 'one' and slept == stays
  with pytest.raises(Ended, match='^5$'):
    made.leave(5, 'two')
  assert made.failure() == 'one'


def test_failure_that_all_know_is_not_reported_and_process_0_stays(
    make, slept):
  made = make(0)
  with pytest.raises(Ended, match='^3$'):
    made.leave(3, None)
  assert made.failure() is None and slept == [3]


def test_process_that_leaves_is_not_ended_again(make, capsys):
  made = make(1)
  with pytest.raises(Ended):
    made.leave(4, 'one')
  made._talk()  # It reads its own report.
  made._wait()
  assert not capsys.readouterr().err


def test_no_process_is_ended_after_the_run(make, capsys):
  made = make(1)
  made.stop()
  made._client.store['haikd/failure'] = 'process 0, which ended'
  made._talk()
  made._wait()
  assert not capsys.readouterr().err


@pytest.mark.parametrize('explained, code, text', [
  ("heartbeat.lost('process 0, which is gone')", 6,
   'haikd [1]: all processes of a run must stay alive; got process 0, which is '
   'gone. Start all again to go on from the newest checkpoint.\n'),
  ('None', -signal.SIGABRT, ''),
])
def test_abort_becomes_an_error_if_it_is_explained(explained, code, text):
  program = f"""
      import ctypes
      from haikd.processes import heartbeat
      handler = heartbeat.catch_abort(lambda: {explained}, 1)
      ctypes.CDLL(None).abort()
  """
  done = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(program)], capture_output=True,
      text=True, timeout=60, check=False, env=dict(os.environ))
  assert (done.returncode, done.stderr) == (code, text)


@pytest.mark.parametrize('form', ['127.0.0.1:{}', 'localhost:{}'])
def test_server_that_listens_answers(form):
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = form.format(server.getsockname()[1])
    assert heartbeat.answers(address)
  assert not heartbeat.answers(address)
