"""An evaluation that is repeated is killed at each write, and loses nothing."""

import json
import os
import pathlib
import shutil
import signal
import sys
import textwrap

import pytest

from haikd.run import rates
from haikd.storage import checkpoint
from haikd.storage import fingerprint
from haikd.storage import step_folder

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER))
import lives as lives_lib  # noqa: E402

# The file `fault` says what goes wrong: the evaluation of step 6, or, once that
# is repeated, a kill before the write of this number.
CONFIG = """
    import os
    import pathlib
    import signal

    from haikd import config as config_lib
    from haikd.processes import watchdog
    from haikd.run import training

    FAULT = pathlib.Path(__file__).with_name('fault').read_text()
    where = lambda: watchdog._phase
    writes = []
    evaluate = training.evaluate.evaluate

    def failing(*args):
      if FAULT == 'evaluation' and where()[1] == 'step 6 of student':
        raise ValueError('no memory left')
      return evaluate(*args)

    def deadly(function):
      def call(*args, **options):
        if where() == (watchdog.SAVE, 'step 6 of student'):
          writes.append(function)
          if FAULT == str(len(writes)):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
      return call

    training.evaluate.evaluate = failing
    for name in ('fsync', 'replace', 'unlink', 'rmdir'):
      setattr(os, name, deadly(getattr(os, name)))

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.log_every = 8, 16, 1
      config.checkpoint_every, config.keep_checkpoints = 100, 1
      config.evaluation.every, config.evaluation.keep_best = 2, 'kl'
      config.data.name = 'synthetic'
      config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
      config.optimizer.learning_rate = 0.01
      config.teacher.options = dict(hidden=(8,))
      config.teacher.train.steps = 4
      config.student.options = dict(hidden=(4,))
      config.report.write = False
      return config
"""


@pytest.fixture
def lives(tmp_path):
  """Starts jobs in processes; says how each of them ends."""
  flags = (os.environ['XLA_FLAGS'] +
           ' --xla_force_host_platform_device_count=1')
  config = tmp_path / 'config.py'
  config.write_text(textwrap.dedent(CONFIG))
  with lives_lib.Lives(tmp_path, dict(os.environ, XLA_FLAGS=flags)) as opened:

    def live(workdir, fault):
      (tmp_path / 'fault').write_text(fault)
      opened.start([f'--config={config}', f'--workdir={workdir}'],
                   tmp_path / 'log')
      return opened.ended(300)

    yield live


def end(workdir):
  """Returns what a job has left, but for its times."""
  newest = checkpoint.newest(workdir)
  extra = step_folder.read_extra(newest)
  for name in ('seconds', 'phases'):
    extra['metadata'].pop(name)
  arrays = step_folder.read_leaves(
      newest, step_folder.read_shapes(newest), as_numpy=True)
  rows = [json.loads(line) for line in (
      workdir / 'metrics.jsonl').read_text().splitlines()]
  return (steps(workdir), extra, fingerprint.tree_hash(arrays),
          rates.without(rows))


def steps(workdir):
  return sorted(int(path.name) for path in (
      workdir / 'checkpoints').iterdir() if path.name.isdigit())


def test_no_kill_while_an_evaluation_is_repeated_loses_a_step(lives, tmp_path):
  assert lives(tmp_path / 'whole', '') == 0
  expected = end(tmp_path / 'whole')
  assert lives(tmp_path / 'failed', 'evaluation') == 1
  assert steps(tmp_path / 'failed') == [4, 6]  # The best so far, and that one.
  kills = 0
  while True:
    workdir = tmp_path / str(kills)
    shutil.copytree(tmp_path / 'failed', workdir)
    theirs = workdir / 'checkpoints' / '6.before' / 'file'
    theirs.parent.mkdir()
    theirs.write_text('theirs')
    if (code := lives(workdir, str(kills + 1))) == 0:
      break
    assert code == -signal.SIGKILL
    kills += 1
    assert checkpoint.newest(workdir).name == '6'
    assert lives(workdir, '') == 0
    assert end(workdir) == expected
    assert theirs.read_text() == 'theirs'
  assert kills == 3  # A file is written, synced, and named.
