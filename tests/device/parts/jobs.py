"""Whole jobs, ResNet-50 from ResNet-152, and a kill and a resume."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from parts import images

import haikd

ROOT = pathlib.Path(haikd.__file__).parents[1]
_POLL = 0.05


def run(report):
  """Adds all results.

  Args:
    report: where to.
  """
  with report.result('kill_and_resume', seconds=20) as go:
    if go:
      _kill_and_resume(report)
  with report.result('resnet', seconds=25) as go:
    if go:
      images.measure(report)
  for name in ('digits_mlp_from_convnet', 'digits_vit_from_vit'):
    with report.result(name, seconds=20) as go:
      if go:
        _job(report, name)


def _job(report, name):
  """Runs a job to its end and tells when its first step was there."""
  variant = ':smoke' if report.tiny else ''
  workdir = report.scratch / name
  job = Job(f'configs/{name}.py{variant}', workdir, '--config.log_every=2')
  first = job.wait_for(workdir, 'metrics.jsonl', report.left() - 5)
  code = job.wait(report.left() - 3)
  values = dict(
      seconds=job.seconds(), seconds_to_first_metrics=first, exit_code=code)
  if code == 0:
    results = json.loads((workdir / 'result.json').read_text())
    values['accuracy'] = {
        key: x.get('accuracy') for key, x in results.items()}
    values['training_seconds'] = {
        key: x.get('seconds') for key, x in results.items()}
  else:
    values['output'] = job.output()
  report.add(name, ok=code == 0, **values)


def _kill_and_resume(report):
  """Kills a job after a checkpoint, starts it again, compares the end."""
  steps = 24 if report.tiny else 400
  flags = (f'--config.steps={steps}', '--config.teacher.train.steps=8',
           f'--config.checkpoint_every={steps // 8}', '--config.baseline=False',
           f'--config.evaluation.every={steps}', '--config.log_every=2')
  variant = ':smoke' if report.tiny else ''
  config = f'configs/digits_mlp_from_convnet.py{variant}'
  whole, cut = report.scratch / 'whole', report.scratch / 'cut'
  codes = [Job(config, whole, *flags).wait(report.left() - 5)]
  job = Job(config, cut, *flags)
  job.wait_for(cut / 'checkpoints', f'{steps // 8}/*', report.left() - 5)
  job.kill()
  killed_at = max(
      [int(x.name) for x in (cut / 'checkpoints').glob('*')
       if x.name.isdigit()], default=0)
  again = Job(config, cut, *flags)
  codes.append(again.wait(report.left() - 3))
  same = None
  if codes == [0, 0]:
    same = _digest(whole) == _digest(cut)
  report.add(
      'kill_and_resume', ok=bool(same) and killed_at < steps, bitwise=same,
      killed_after=killed_at, steps=steps, exit_codes=codes,
      output='' if codes == [0, 0] else again.output())


def _digest(workdir):
  """Returns a hash of the trained student, bit by bit."""
  trained = haikd_parameters(workdir)
  digest = hashlib.sha256()
  for name in sorted(trained):
    digest.update(name.encode() + trained[name].tobytes())
  return digest.hexdigest()


def haikd_parameters(workdir):
  """Returns `{name: array}` of the newest checkpoint in a workdir."""
  import jax
  import orbax.checkpoint as ocp
  folder = pathlib.Path(workdir) / 'checkpoints'
  newest = max(int(x.name) for x in folder.glob('*') if x.name.isdigit())
  state = folder / str(newest) / 'state'
  with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.restore(state.absolute())
  return {
      jax.tree_util.keystr(path): np.asarray(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


class Job:
  """A run of `python -m haikd.launch` in a process of its own.

  Args:
    config: file, with its variant.
    workdir: where its files go.
    *flags: further ones.
  """

  def __init__(self, config, workdir, *flags):
    self._log = pathlib.Path(f'{workdir}.log')
    self._begin, self._end = time.monotonic(), None
    with open(self._log, 'a') as log:
      self._process = subprocess.Popen(
          [sys.executable, '-m', 'haikd.launch', f'--config={config}',
           f'--workdir={workdir}', *flags],
          cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
          env={**os.environ, 'PYTHONUNBUFFERED': '1'})

  def wait_for(self, folder, pattern, seconds):
    """Returns the seconds until a file is there, or None if it never is."""
    while time.monotonic() - self._begin < seconds:
      if any(path.stat().st_size
             for path in _found(folder, pattern)):
        return time.monotonic() - self._begin
      if self._process.poll() is not None:
        return None
      time.sleep(_POLL)
    return None

  def wait(self, seconds):
    """Returns the exit code; None if it had to be killed."""
    try:
      return self._process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
      self.kill()
      return None
    finally:
      self._end = time.monotonic()

  def kill(self):
    """Kills it without notice."""
    self._process.kill()
    self._process.wait()

  def seconds(self):
    """Returns how long it took."""
    return self._end - self._begin

  def output(self):
    """Returns the end of what it printed."""
    return self._log.read_text(errors='replace')[-400:]


def _found(folder, pattern):
  try:
    return [x for x in pathlib.Path(folder).rglob(pattern) if x.exists()]
  except OSError:  # A folder that is renamed meanwhile.
    return []
