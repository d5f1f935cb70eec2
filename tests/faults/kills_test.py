"""A job that is killed at any moment, and started again, ends bitwise alike."""

import collections
import json
import os
import pathlib
import random
import sys
import textwrap
import time

import numpy as np
import pytest

from haikd.run import rates
from haikd.storage import one_file
from haikd.storage import step_folder

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER))
import lives as lives_lib  # noqa: E402

# Has everything that a restart could get wrong: data that is prepared, dropout,
# BatchNorm, the running mean, augmentation, the order of the data, the best
# network, a stage.
CONFIG = """
    from haikd import config as config_lib
    from haikd.storage import one_file

    one_file.LIMIT = {limit}  # 0: Orbax saves.

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size = 24, 16
      config.log_every, config.checkpoint_every = 1, 5
      config.evaluation.every, config.evaluation.keep_best = 8, 'accuracy'
      config.evaluation.batch_size = 64
      config.data.name = 'fashion'
      config.data.source_dir = {folder!r}
      config.data.augment = dict(shift=dict(), mixup=dict())
      config.optimizer.ema_decay = 0.9
      config.stages.later = dict(start=12, optimizer=dict(learning_rate=2e-3))
      config.teacher.options = dict(hidden=(8,))
      config.teacher.train.steps = 16
      config.student.model = 'convnet'
      config.student.options = dict(channels=(2,), dropout=0.2)
      config.report.write = False
      return config
"""

# What a kill is aimed at: whether a life, of this phase, is there.
AIMS = {
    'preparation': lambda phase: phase.startswith('None|the check'),
    'teacher': lambda phase: phase.startswith('step|') and (
        phase.endswith('of teacher')),
    'hand-over': lambda phase: phase == 'None|',
    'distillation': lambda phase: phase.startswith('step|') and (
        phase.endswith('of student')),
    'evaluation': lambda phase: phase.startswith('evaluation|'),
    'saving': lambda phase: phase.startswith('save|'),
    'any': lambda phase: True,
}


class Campaign:
  """A job whose lives are killed, and what it is to end with."""

  def __init__(self, folder, seed, limit=one_file.LIMIT):
    self.folder, self.random = folder, random.Random(seed)
    self.kills = collections.Counter()
    self._write_data()
    self.config = folder / 'config.py'
    self.config.write_text(textwrap.dedent(
        CONFIG.format(folder=str(folder), limit=limit)))
    flags = (os.environ['XLA_FLAGS'] +
             ' --xla_force_host_platform_device_count=1')
    self.lives = lives_lib.Lives(folder, dict(os.environ, XLA_FLAGS=flags))

  def _write_data(self):
    """Writes the four files of Fashion-MNIST, with noise as images."""
    rng = np.random.default_rng(0)
    for part, size in (('train', 200), ('t10k', 64)):
      for name, array in (
          ('images-idx3', rng.integers(0, 256, (size, 28, 28))),
          ('labels-idx1', np.arange(size) % 10)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(
            array.shape, '>u4').tobytes()
        (self.folder / f'{part}-{name}-ubyte').write_bytes(
            header + array.astype(np.uint8).tobytes())

  def start(self, name):
    self.lives.start(
        [f'--config={self.config}', f'--workdir={self.folder / name}',
         f'--config.data.data_dir={self.folder / name}-data'],
        self.folder / 'log')

  def finish(self, name):
    self.start(name)
    code = self.lives.ended(600)
    assert code == 0, (self.folder / 'log').read_text()
    return end(self.folder / name)

  def kill(self, name, aim, most=10):
    """Starts a life, and kills it at a random moment of a phase.

    Returns:
      Whether it was alive; else the job is done.
    """
    left_before = self._unfinished(name)
    self.start(name)
    # How often the aim is met before; that of some is met once.
    once = aim in ('preparation', 'hand-over')
    left = 0 if once else min(self.random.choice((0, 0, 1, 2, 5, 10)), most)
    state = dict(left=left, last=None)

    def happens():
      phase = self.lives.phase()
      if not AIMS[aim](phase) or phase == state['last']:
        return False
      state['last'] = phase
      state['left'] -= 1
      return state['left'] < 0

    self.lives.wait_for(happens)
    time.sleep(self.random.choice((0, 0, 0.001, 0.003, 0.01, 0.03)))
    if aim == 'any':
      time.sleep(self.random.uniform(0, 3))
    phase = self.lives.kill()
    if phase is None:
      return False
    what = next(what for what in AIMS if AIMS[what](phase))
    if self._unfinished(name) - left_before:
      what = 'during a save'
    self.kills[what] += 1
    return True

  def _unfinished(self, name):
    """Returns which saves were not finished, each with its inode."""
    return {(path, path.stat().st_ino) for folder in ('.', 'teacher')
            for path in (self.folder / name / folder).glob(
                'checkpoints/*.haikd-saving')}


def end(workdir):
  """Returns all that a job has left: each array, row and result."""
  found = {'result': [json.loads((workdir / 'result.json').read_text())]}
  for row in found['result'][0].values():
    row.pop('seconds')
  for part in ('teacher', '.'):
    newest = step_folder.find(workdir / part / 'checkpoints')
    arrays = step_folder.read_leaves(
        newest, step_folder.read_shapes(newest), as_numpy=True)
    extra = step_folder.read_extra(newest)
    for name in ('seconds', 'phases'):
      extra['metadata'].pop(name)
    extra['metadata'].pop('config')  # Its folders.
    extra['metadata'].pop('teacher', None)
    found[part] = [newest.name, extra, {
        name: np.asarray(x).tobytes() for name, x in arrays.items()}]
    rows = [json.loads(line) for line in (
        workdir / part / 'metrics.jsonl').read_text().splitlines()]
    found[part].append(rates.without(rows))
  return found


def test_killed_job_ends_bitwise_the_same(tmp_path):
  campaign = Campaign(tmp_path, seed=0)
  with campaign.lives:
    expected = campaign.finish('whole')
    for aim in ('preparation', 'teacher', 'saving', 'distillation',
                'evaluation'):
      assert campaign.kill('killed', aim, most=1)
    assert campaign.finish('killed') == expected


@pytest.mark.slow
@pytest.mark.parametrize('limit', (one_file.LIMIT, 0))
def test_hundreds_of_kills_change_nothing(tmp_path, limit):
  """HAIKD_KILLS says how many, HAIKD_SEED which."""
  total = int(os.environ.get('HAIKD_KILLS', '300'))
  campaign = Campaign(tmp_path, int(os.environ.get('HAIKD_SEED', '0')), limit)
  aims = ['preparation', 'teacher', 'hand-over', 'distillation', 'evaluation',
          'saving', 'saving', 'any', 'any']
  with campaign.lives:
    expected, number = campaign.finish('whole'), 0
    while sum(campaign.kills.values()) < total:
      number += 1
      name = f'killed-{number}'
      for _ in range(12):
        if not campaign.kill(name, campaign.random.choice(aims)):
          break
      assert campaign.finish(name) == expected, dict(campaign.kills)
      print(f'{sum(campaign.kills.values())} kills, {number} jobs:',
            dict(campaign.kills), flush=True)
  if total >= 300:
    assert campaign.kills['during a save'] >= 50, campaign.kills
