"""What a part finds out: one printed line and one JSON entry a result."""

import contextlib
import json
import os
import pathlib
import platform
import re
import time
import traceback


class WantsGpuError(RuntimeError):
  """There is no accelerator, and the tiny form was not asked for."""


class Report:
  """Collects the results of one part and writes them as they come.

  Args:
    name: of the part.
    out: folder of the JSON files.
    scratch: folder for traces and workdirs; removed afterwards.
    tiny: whether sizes are shrunk to what a CPU does in seconds.
    seconds: time limit of the part.
    only: regular expression of the results that are wanted.
  """

  def __init__(self, name, out, scratch, *, tiny, seconds, only=''):
    self.name, self.tiny = name, tiny
    self.scratch = pathlib.Path(scratch)
    self.path = pathlib.Path(out) / f'{name}.json'
    self._end = time.monotonic() + seconds
    self._start = time.monotonic()
    self._only = re.compile(only)
    self.content = dict(
        part=name, tiny=tiny, done=False, error=None, seconds=0.0,
        python=platform.python_version(), results={})
    self.write()

  def wants(self, result):
    """Returns whether a result of that name was asked for."""
    return bool(self._only.search(result))

  def left(self):
    """Returns the seconds that are left."""
    return self._end - time.monotonic()

  def write(self):
    """Writes the file, replacing the old one at once."""
    self.content['seconds'] = round(time.monotonic() - self._start, 1)
    write_json(self.path, self.content)

  def describe_device(self):
    """Records the device and the version of JAX.

    Raises:
      WantsGpuError: the device is a CPU and the sizes are not tiny.
    """
    import jax
    device = jax.devices()[0]
    if device.platform == 'cpu' and not self.tiny:
      raise WantsGpuError('a GPU is wanted; use --tiny on a CPU.')
    self.content.update(
        jax=jax.__version__, device=device.device_kind,
        platform=device.platform)
    self.write()

  def add(self, result, *, ok=True, **values):
    """Adds a result, prints its line and writes the file.

    Args:
      result: its name.
      ok: False if it makes the part fail.
      **values: what was found; numbers, strings, lists and dicts.
    """
    self.content['results'][result] = dict(ok=bool(ok), **values)
    self.write()
    shown = ' '.join(f'{key}={_short(value)}' for key, value in values.items())
    mark = '' if ok else 'FAILED '
    print(f'{self.name}: {mark}{result}: {shown}', flush=True)

  @contextlib.contextmanager
  def result(self, result, *, seconds=0.0):
    """Turns an error inside into a failed result, so that others go on.

    Use it as `with report.result(name) as go:` and begin with `if go:`. It
    gives False, and records that the result was skipped, if too little time
    is left.

    Args:
      result: its name.
      seconds: how much time it takes at least.

    Yields:
      Whether to go on.
    """
    if self.left() < seconds:
      self.add(result, skipped=f'{self.left():.0f} s left, wants {seconds:.0f}')
      yield False
      return
    try:
      yield True
    except WantsGpuError:
      raise
    except Exception as err:  # Whatever a device can think of.
      traceback.print_exc()
      self.add(result, ok=False, error=one_line(err))

  def finish(self, error=None):
    """Marks the part as done.

    Args:
      error: why it failed, in one line; None if it did not.
    """
    failed = [name for name, x in self.content['results'].items()
              if not x['ok']]
    if error is None and failed:
      error = 'failed: ' + ', '.join(failed)
    self.content.update(done=True, error=error)
    self.write()


def one_line(err):
  """Returns an exception's type and text in one line of bounded length."""
  return ' '.join(f'{type(err).__name__}: {err}'.split())[:500]


def write_json(path, content):
  """Writes a file that is never seen half written."""
  path = pathlib.Path(path)
  new = path.with_name(path.name + '.new')
  new.write_text(json.dumps(content, indent=1, default=float) + '\n')
  os.replace(new, path)


def _short(value):
  if isinstance(value, float):
    return f'{value:.4g}'
  if isinstance(value, dict):
    inner = ', '.join(f'{k}: {_short(v)}' for k, v in value.items())
    return f'{{{inner}}}'
  if isinstance(value, (list, tuple)):
    return '[' + ', '.join(map(_short, value)) + ']'
  text = str(value)
  return f"'{text}'" if ' ' in text else text
