"""What a teacher scores is computed once for many runs."""

import json
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import launch
from haikd.config import file as config_file
from haikd.core import base
from haikd.engine import evaluate
from haikd.network import network as network_lib
from haikd.run import kept_scores

V, N = 40, 12
CONFIG = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.log_every = 2, 8, 1
      config.evaluation.batch_size = 8
      config.data.name, config.data.source_dir = 'tokens', {folder!r}
      config.data.options = dict(length=12, vocabulary=40)
      config.teacher.model = config.student.model = 'llama'
      config.teacher.options = dict(width=16, depth=1, heads=2, hidden=16)
      config.student.options = dict(width=8, depth=1, heads=2, hidden=8)
      config.teacher.init = 'npz:{folder}/teacher.npz'
      return config
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The data, the teacher's weights, and the config of a job."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  rng = np.random.default_rng(0)
  for split, rows in (('train', 16), ('validation', 2), ('test', 20)):
    np.save(tmp_path / f'{split}.npy', rng.integers(0, V, N * rows))
  (tmp_path / 'job.py').write_text(
      textwrap.dedent(CONFIG.format(folder=str(tmp_path))))
  save_teacher(tmp_path, 3.0)
  return tmp_path


def save_teacher(folder, scale):
  config = config_file.load(f'{folder}/job.py')
  network = network_lib.build_network(
      config.teacher, title='teacher', num_classes=V)
  batch = base.Batch(jnp.zeros((1, N), int), jnp.ones((1, N), bool))
  params, state = jax.jit(network.init)(jax.random.key(0), batch)
  haikd.save_network(
      folder / 'teacher.npz', jax.tree.map(lambda x: scale * x, params), state)


def run(folder, name, capsys, *flags):
  """Returns the teacher's row, and whether it is said to be another run's."""
  assert launch.main(['launch', f'--config={folder}/job.py',
                      f'--workdir={folder}/{name}', *flags]) == 0
  out = capsys.readouterr().out
  row = json.loads((folder / name / 'result.json').read_text())['teacher']
  del row['seconds']
  return row, "the teacher's scores are those of an earlier run" in out


def kept(folder):
  return sorted((folder / 'cache/haikd/scores').iterdir())


def test_other_seeds_and_students_do_not_run_the_teacher_again(
    folder, capsys, monkeypatch):
  first, reused = run(folder, 'first', capsys)
  assert not reused and len(kept(folder)) == 1
  computed = []
  shard_of = evaluate.Total.add
  monkeypatch.setattr(evaluate.Total, 'add', lambda self, results: (
      computed.append(isinstance(jax.tree.leaves(results)[0], jax.Array)),
      shard_of(self, results)))
  second, reused = run(folder, 'second', capsys, '--config.seed=1',
                       '--config.student.options.hidden=16')
  # The three batches of the teacher were not computed on a device.
  assert reused and computed.count(False) == 3
  assert second == first


@pytest.mark.parametrize('flag', [
    '--config.data.options.length=6',
    '--config.teacher.options.rope_base=100.0',
    '--config.teacher.precision=bfloat16'])
def test_what_changes_the_row_is_noticed(folder, capsys, flag):
  first, _ = run(folder, 'first', capsys)
  other, reused = run(folder, 'other', capsys, flag)
  assert not reused and other['kl'] == first['kl'] == 0
  assert other['cross_entropy'] != first['cross_entropy']


def test_other_weights_and_texts_are_noticed(folder, capsys):
  first, _ = run(folder, 'first', capsys)
  save_teacher(folder, 2.0)
  other, reused = run(folder, 'weights', capsys)
  assert not reused and other['cross_entropy'] != first['cross_entropy']
  save_teacher(folder, 3.0)
  tokens = np.load(folder / 'test.npy')
  tokens[0] = (tokens[0] + 1) % V
  np.save(folder / 'test.npy', tokens)
  other, reused = run(folder, 'texts', capsys)  # Two of three batches.
  assert reused and other['cross_entropy'] != first['cross_entropy']
  assert abs(other['cross_entropy'] - first['cross_entropy']) < 0.1
  # Batches of both texts are kept.
  path, = (x for x in kept(folder) if len(json.loads(x.read_text())) == 4)
  again, reused = run(folder, 'again', capsys)
  assert reused and again == other and path.exists()


def test_rows_with_metrics_of_the_users_own_are_not_kept():
  program = types.SimpleNamespace(teacher_eval_step=None, own_metrics=('mine',))
  assert kept_scores.step_of(program, 'identity', None) is None


@pytest.mark.parametrize('content', [
    b'', b'[]', b'{"x": {"tokens": {"kl": [1, 2]}}}', b'{"x": 3}', b'\xff'])
def test_damaged_file_is_computed_again(folder, capsys, content):
  first, _ = run(folder, 'first', capsys)
  path, = kept(folder)
  good = path.read_bytes()
  path.write_bytes(content)
  again, reused = run(folder, 'again', capsys)
  assert not reused and again == first
  assert path.read_bytes() == good
