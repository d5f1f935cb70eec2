"""Whole jobs, a kill and a resume, and ResNet-50 from ResNet-152."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

from parts import images

import haikd
from haikd.storage import step_folder

ROOT = pathlib.Path(haikd.__file__).parents[1]
_POLL = 0.05


def run(report):
  """Adds all results.

  Args:
    report: where to.
  """
  default, vit = 'digits_mlp_from_convnet', 'digits_vit_from_vit'
  for name, seconds, check in (
      (default, 20, lambda: _job(report, default)),
      ('kill_and_resume', 15, lambda: _kill_and_resume(report, default)),
      ('resnet', 25, lambda: images.measure(report)),
      (vit, 20, lambda: _job(report, vit))):
    if report.wants(name):
      with report.result(name, seconds=seconds) as go:
        if go:
          check()


def _job(report, name):
  """Runs a job to its end and tells when its first step was there."""
  workdir = report.scratch / name
  job = _start(report, name, workdir)
  first = job.wait_for(lambda: _has_metrics(workdir), report.left() - 5)
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


def _start(report, name, workdir):
  variant = ':smoke' if report.tiny else ''
  return Job(f'configs/{name}.py{variant}', workdir, '--config.log_every=2')


def _kill_and_resume(report, name):
  """Kills a job after a checkpoint, starts it again, compares the end.

  Args:
    report: where to add the result.
    name: of the job, which has run to its end.
  """
  whole, cut = report.scratch / name, report.scratch / 'cut'
  steps = _newest(whole)
  job = _start(report, name, cut)
  job.wait_for(lambda: _newest(cut), report.left() - 5)
  job.kill()
  killed_after = _newest(cut)
  again = _start(report, name, cut)
  code = again.wait(report.left() - 3)
  same = _digest(whole) == _digest(cut) if code == 0 else None
  values = {} if code == 0 else dict(output=again.output())
  report.add(
      'kill_and_resume', ok=bool(same) and 0 < killed_after < steps,
      bitwise=same, killed_after=killed_after, steps=steps, exit_code=code,
      **values)


def _newest(workdir):
  """Returns the step of the newest checkpoint in a workdir, 0 for none."""
  folder = pathlib.Path(workdir) / 'checkpoints'
  return max(
      [int(x.name) for x in folder.glob('*') if x.name.isdigit()], default=0)


def _digest(workdir):
  """Returns a hash of the whole state in the newest checkpoint."""
  folder = pathlib.Path(workdir) / 'checkpoints' / str(_newest(workdir))
  leaves = step_folder.read_leaves(
      folder.absolute(), step_folder.read_shapes(folder.absolute()),
      as_numpy=True)
  digest = hashlib.sha256()
  for name, leaf in leaves.items():
    digest.update(name.encode())
    digest.update(leaf.tobytes())
  return digest.hexdigest()


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

  def wait_for(self, condition, seconds):
    """Returns the seconds until a condition holds, or None if it never does."""
    while time.monotonic() - self._begin < seconds:
      if condition():
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


def _has_metrics(workdir):
  """Returns whether some network of a run has written its first line."""
  paths = [pathlib.Path(workdir) / part / 'metrics.jsonl'
           for part in ('teacher', 'baseline', '')]
  return any(x.exists() and x.stat().st_size for x in paths)
