"""Batches that processes make are those that this process makes."""

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.data import pipeline
from haikd.data import workers as workers_lib

SCRIPT = """
import os, sys, time
from haikd import config as config_lib
from haikd.data import pipeline, workers

print('the script runs', flush=True)  # Once: it has no `if __name__ == …`.
config = config_lib.base()
config.batch_size = 4
config.data.update(name='image_folder', source_dir=sys.argv[1], image_size=8,
                   options={})
config.data.workers = 2
data = pipeline.build_data(config, process_index=0, process_count=1)
batches = data.train()
next(batches)
print(*(x.process.pid for x in workers.shared(2)._all), flush=True)
time.sleep(float(sys.argv[2]))
"""


def build(photos, workers, **fields):
  config = config_lib.base()
  config.batch_size, config.evaluation.batch_size = 4, 5
  config.data.update(dict(
      name='image_folder', source_dir=str(photos), image_size=8, options={},
      augment=dict(random_resized_crop={}, flip={}), **fields))
  config.data.workers = workers
  return pipeline.build_data(config, process_index=0, process_count=1)


def assert_same(batches, expected):
  jax.tree.map(np.testing.assert_array_equal, batches, expected)


@pytest.mark.parametrize('count', [1, 2, 4])
def test_batches_do_not_depend_on_the_number_of_workers(photos, count):
  alone, made = build(photos, 0), build(photos, count)
  stream, expected = made.train(), [x for x, _ in zip(alone.train(), range(8))]
  assert_same([next(stream) for _ in range(3)], expected[:3])
  place = stream.get_state()
  assert_same(list(made.evaluation('train')), list(alone.evaluation('train')))
  assert_same([next(stream) for _ in range(5)], expected[3:])
  again = build(photos, count).train()
  again.set_state(place)
  assert_same(next(again), expected[3])


def test_a_worker_that_is_killed_is_named(photos):
  stream = build(photos, 1).train()
  first = next(stream)
  process = workers_lib.shared(1)._all[0].process
  os.kill(process.pid, signal.SIGTERM)  # The run goes on to a step's end.
  for _ in range(8):  # More than were read ahead.
    assert next(stream).inputs.values.shape == first.inputs.values.shape
  os.kill(process.pid, signal.SIGKILL)
  with pytest.raises(checks.DataError, match=(
      'config.data.workers must be processes that live as long as the run; got '
      'worker 1 of 1, which was ended by SIGKILL. If memory ran out, set it')):
    for _ in range(8):
      next(stream)


def test_an_error_of_a_worker_is_that_of_a_thread(photos, tmp_path):
  for i in range(8):
    (tmp_path / 'ant').mkdir(exist_ok=True)
    whole = (photos / 'ant' / '0.jpg').read_bytes()
    (tmp_path / 'ant' / f'{i}.jpg').write_bytes(whole[:len(whole) // 2])
  errors = []
  for count in (0, 1):
    with pytest.raises(checks.DataError, match='must be an image that') as err:
      next(build(tmp_path, count).train())
    errors.append(str(err.value))
  # Threads and workers may come to another image first.
  assert errors[0][-60:] == errors[1][-60:]


READS = """
import os


class Reads:

  def __len__(self):
    return 1

  def make(self, number):
    return os.read(0, 1)

  def finish(self, number, batch):
    return batch
"""


def test_what_a_worker_runs_does_not_read_its_questions(
    tmp_path, monkeypatch):
  (tmp_path / 'reads_input.py').write_text(READS)
  monkeypatch.syspath_prepend(tmp_path)
  made = workers_lib.Made(
      importlib.import_module('reads_input').Reads(), workers_lib.Workers(1))
  assert [made[0], made[0]] == [b'', b'']


def _is_alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


@pytest.mark.parametrize('end', ['exit', 'kill'])
def test_workers_end_with_the_script_and_do_not_run_it(photos, tmp_path, end):
  path = tmp_path / 'script.py'
  path.write_text(SCRIPT)
  with subprocess.Popen(
      [sys.executable, str(path), str(photos), '0' if end == 'exit' else '99'],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
    assert script.stdout.readline() == 'the script runs\n'
    pids = [int(x) for x in script.stdout.readline().split()]
    if end == 'kill':
      script.kill()
    out, err = script.communicate()
    assert (out, err) == ('', '')
  assert len(pids) == 2
  limit = time.monotonic() + 60
  while any(map(_is_alive, pids)):
    assert time.monotonic() < limit, 'a worker has stayed'
    time.sleep(0.1)


def test_workers_by_the_command_line(run, photos, tmp_path, monkeypatch):
  (tmp_path / 'images.py').write_text(textwrap.dedent(f'''
      from haikd import config as config_lib

      def get_config():
        config = config_lib.base()
        config.steps, config.batch_size, config.teacher.train.steps = 6, 4, 2
        config.log_every = 1
        config.data.name = 'image_folder'
        config.data.source_dir = {str(photos)!r}
        config.data.image_size = 8
        config.data.augment = dict(random_resized_crop={{}}, flip={{}})
        config.evaluation.split = config.evaluation.final = 'train'
        config.teacher.options = config.student.options = dict(hidden=(4,))
        config.report.write = False
        return config
  '''))
  losses = []
  for count in (0, 2):
    code, _, err = run(f'--config.data.workers={count}', config='images.py',
                       workdir=f'run{count}')
    assert code == 0, err
    rows = (tmp_path / f'run{count}' / 'metrics.jsonl').read_text().splitlines()
    losses.append([x['loss'] for x in map(json.loads, rows)
                   if x['split'] == 'train'])
  assert len(losses[0]) == 6 and losses[0] == losses[1]
  code, _, err = run('--config.data.workers=-1', config='images.py')
  assert code == 2 and 'config.data.workers must be None or 0 or more' in err

  make = workers_lib.Workers.make

  def make_after_a_kill(self, key, number):
    self._all[0].process.kill()
    return make(self, key, number)

  monkeypatch.setattr(workers_lib.Workers, 'make', make_after_a_kill)
  code, _, err = run('--config.data.workers=1', config='images.py',
                     workdir='killed')
  assert code == 3 and err.splitlines()[-1].startswith(
      'haikd: config.data.workers must be processes that live as long')
