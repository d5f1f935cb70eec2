"""The program that checks an accelerator, in its tiny form on a CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

CHECK = pathlib.Path(__file__).with_name('check.py')
# Of each kind of result one.
NUMBERS = 'kl_divergence/larger|blocked/attend/float32|SAME|step/mlp/float32'
BROKEN = """
def run(report):
  report.add('first', value=1.5)
  with report.result('second') as go:
    if go:
      raise ValueError('broken\\non purpose')
  report.add('third', ok=True)
"""
CRASHED = """
import os

def run(report):
  report.add('first', value=1)
  os._exit(7)
"""
HANGING = """
import time

def run(report):
  report.add('first', value=1)
  time.sleep(600)
"""
NOISY = """
import itertools
import jax
import jax.numpy as jnp
import numpy as np
from parts import compare

count = itertools.count()

def noisy(x):
  shape = jax.ShapeDtypeStruct((), np.float32)
  return jax.pure_callback(lambda _: np.float32(next(count)), shape, x)

def run(report):
  function = lambda x: jax.jit(jnp.sin)(x).sum() + noisy(x)
  compare.check(report, 'sum', function, (jnp.ones((2, 3)),), 100.0)
"""


def check(folder, *flags, platform='cpu'):
  """Runs the program; returns (exit code, what it printed)."""
  environment = {**os.environ, 'JAX_PLATFORMS': platform,
                 'PYTHONPATH': str(folder)}
  done = subprocess.run(
      [sys.executable, str(CHECK), f'--out={folder / "out"}', *flags],
      env=environment, capture_output=True, text=True, check=False)
  return done.returncode, done.stdout + done.stderr


def read(folder, part):
  return json.loads((folder / 'out' / f'{part}.json').read_text())


def test_numbers_agree_and_are_recorded(tmp_path):
  code, printed = check(
      tmp_path, '--tiny', '--parts=numbers', f'--only={NUMBERS}')
  found = read(tmp_path, 'numbers')
  assert code == 0, printed
  assert found['done'] and found['error'] is None
  assert found['platform'] == 'cpu' and found['tiny']
  assert set(found['results']) == {
      'loss/kl_divergence/larger/float32', 'loss/kl_divergence/larger/bfloat16',
      'blocked/attend/float32', 'pooling/SAME', 'step/mlp/float32'}
  for name, result in found['results'].items():
    # Both sides are the CPU's here.
    assert result['error'] == 0 and result['bitwise'], name
    assert result['finite'] and result['ok'], name
    assert f'numbers: {name}: ' in printed


@pytest.mark.slow
def test_step_tells_time_work_and_memory(tmp_path):
  code, printed = check(
      tmp_path, '--tiny', '--parts=step', '--only=by_hand/fused')
  found = read(tmp_path, 'step')
  assert code == 0, printed
  logits = found['results']['logits']
  for key in ('ms', 'tokens_per_second', 'mfu', 'mfu_student', 'planned_gib'):
    assert logits[key] > 0, key
  assert logits['open_loops'] == 0
  # The products of the two networks are nearly all there is to count.
  model = logits['teacher_tflop'] + logits['student_tflop']
  assert model <= logits['counted_tflop'] <= 1.2 * model
  by_hand = found['results']['by_hand/fused']
  assert by_hand['ok'] and by_hand['haikd_over_by_hand']['median'] > 0
  assert by_hand['losses'] == pytest.approx(logits['losses'], rel=0.02)


def test_parts_fail_by_themselves_and_say_so(tmp_path):
  for name, text in (('broken', BROKEN), ('crashed', CRASHED),
                     ('whole', 'def run(report): report.add("first")')):
    (tmp_path / f'my_{name}.py').write_text(text)
  code, printed = check(
      tmp_path, '--tiny', '--parts=my_broken,my_crashed,my_missing,my_whole')
  assert code == 1
  assert 'failed: my_broken, my_crashed, my_missing\n' in printed
  broken = read(tmp_path, 'my_broken')
  assert broken['error'] == 'failed: second' and broken['done']
  assert broken['results']['first'] == dict(ok=True, value=1.5)
  assert broken['results']['second'] == dict(
      ok=False, error='ValueError: broken on purpose')
  assert broken['results']['third']['ok']
  crashed = read(tmp_path, 'my_crashed')
  assert crashed['error'] == 'ended with exit code 7' and not crashed['done']
  assert 'first' in crashed['results']
  assert 'No module named' in read(tmp_path, 'my_missing')['error']
  assert read(tmp_path, 'my_whole')['error'] is None


def test_operation_that_differs_between_runs_is_named(tmp_path):
  (tmp_path / 'my_noisy.py').write_text(NOISY)
  code, printed = check(tmp_path, '--tiny', '--parts=my_noisy')
  assert code == 0, printed
  result = read(tmp_path, 'my_noisy')['results']['sum']
  assert not result['bitwise']
  assert result['unequal_op'] == 'pure_callback of float32[2,3]'


def test_part_that_hangs_is_cut_short(tmp_path):
  (tmp_path / 'my_hanging.py').write_text(HANGING)
  code, _ = check(
      tmp_path, '--tiny', '--parts=my_hanging', '--seconds=15')
  assert code == 1
  found = read(tmp_path, 'my_hanging')
  assert found['error'].startswith('cut short after its')
  assert 'first' in found['results']


def test_a_gpu_is_wanted_unless_tiny(tmp_path):
  code, printed = check(tmp_path, '--parts=numbers')
  assert code == 1
  assert printed == 'check.py: a GPU is wanted; use --tiny on a CPU.\n'


def test_wrong_parts_are_refused(tmp_path):
  code, printed = check(tmp_path, '--parts=numbers,st*p')
  assert code == 2
  assert "got 'st*p'. Known: numbers, step, " in printed


@pytest.mark.slow
@pytest.mark.parametrize('part', ['profile', 'jobs', 'bench'])
def test_heavier_parts_run(tmp_path, part):
  code, printed = check(tmp_path, '--tiny', f'--parts={part}')
  assert code == 0, printed
  found = read(tmp_path, part)
  assert found['done'] and found['results']
  assert all(x['ok'] for x in found['results'].values())
