"""Rows of metrics on a disk that becomes full in the middle of one."""

import contextlib
import io
import json
import resource
import signal

import pytest
import rich.console
from tensorboard.backend.event_processing import event_accumulator

from haikd.core import checks
from haikd.run import writer

# The thread of TensorBoard says what has ended it.
pytestmark = pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnhandledThreadExceptionWarning')


@contextlib.contextmanager
def room(size):
  """No file can become larger than `size` inside, as on a full disk.

  The system writes what there is room for, and refuses the rest.
  """
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


def opened(workdir, **options):
  return writer.open_writer(workdir, total_steps=9, console=rich.console.
                            Console(file=io.StringIO()), **options)


def steps(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['step'] for line in lines]


def size(workdir):
  return (workdir / 'metrics.jsonl').stat().st_size


def write(out, step):
  out.write(step, 'train', dict(loss=float(step)))


@pytest.mark.parametrize('last', ('write', 'flush', 'close'))
def test_rows_that_wait_are_whole(tmp_path, last):
  with opened(tmp_path, go_on=True) as out:
    write(out, 1)
    with room(size(tmp_path) + 10):
      write(out, 2)
      write(out, 3)
      assert steps(tmp_path) == [1]
    if last == 'write':
      write(out, 4)
    elif last == 'flush':
      out.flush()
    assert last == 'close' or steps(tmp_path)[:3] == [1, 2, 3]
  assert steps(tmp_path)[:3] == [1, 2, 3]


def test_events_that_wait_are_whole(tmp_path):
  with opened(tmp_path, go_on=True) as out:
    out.truncate(0)
    write(out, 1)
    events, = tmp_path.glob('events.*')
    with room(events.stat().st_size + 10):
      write(out, 2)
      assert steps(tmp_path) == [1, 2]
    write(out, 3)
    write(out, 4)
  read = event_accumulator.EventAccumulator(str(tmp_path))
  assert [x.step for x in read.Reload().Scalars('train/loss')] == [1, 2, 3, 4]


def test_rows_that_wait_are_dropped_with_their_steps(tmp_path):
  with opened(tmp_path, go_on=True) as out:
    write(out, 1)
    with room(size(tmp_path)):
      write(out, 2)
      write(out, 3)
    out.truncate(2)
    write(out, 3)
  assert steps(tmp_path) == [1, 2, 3]


def test_rows_are_dropped_where_no_room_is_left(tmp_path):
  """A file of the rows that stay would need some."""
  with opened(tmp_path) as out:
    for step in range(1, 4):
      write(out, step)
    with room(10):
      out.truncate(2)
      assert steps(tmp_path) == [1, 2]
      out.truncate(0)
      assert steps(tmp_path) == []


def test_a_row_that_ends_the_run_leaves_no_part(tmp_path):
  with pytest.raises(checks.DataError, match='^--workdir must be a folder'):
    with opened(tmp_path) as out:
      write(out, 1)
      with room(size(tmp_path) + 10):
        write(out, 2)
  assert steps(tmp_path) == [1]
