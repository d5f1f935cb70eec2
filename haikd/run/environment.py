"""What a process has before it runs a job: devices, a cache, and quiet."""

import logging
import os
import sys
import threading

from absl import logging as absl_logging
import jax

from haikd.core import checks
from haikd.storage import outputs


def open_closed_streams() -> None:
  """Opens the null device for what the caller has closed, as `2>&-` does.

  Else the next file that the run opens would get its number, and what native
  code prints would be written into that file. Call it first.
  """
  for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
    if getattr(sys, name) is None:
      setattr(sys, name, open(os.devnull, mode, encoding='utf-8'))


def check_devices() -> None:
  """Refuses a platform that this machine does not have.

  Raises:
    ConfigError: JAX finds no device, or not that of JAX_PLATFORMS.
  """
  try:
    jax.devices()
  except Exception as err:  # JAX raises several types.
    platforms = os.environ.get('JAX_PLATFORMS')
    if not platforms:
      raise checks.ConfigError(
          f'JAX must find its devices; got {checks.describe(err)}. See that no '
          'other process holds them, or set JAX_PLATFORMS=cpu.') from err
    raise checks.ConfigError(
        f'JAX_PLATFORMS must name a platform that JAX finds here; got '
        f'{platforms!r} ({checks.describe(err)}). Unset it, or install JAX for '
        'that platform.') from err


def quiet() -> None:
  """Hides the libraries' log messages, which are for their developers."""
  absl_logging.set_verbosity(absl_logging.ERROR)
  logging.getLogger('jax').setLevel(logging.ERROR)
  # gcsfs logs errors that it raises as well.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)
  # On a full disk, TensorStore's threads print a traceback for each array of a
  # checkpoint; the error itself is raised where the checkpoint is awaited.
  sys.excepthook = _only_of_main_thread


def _only_of_main_thread(kind, error, trace):
  if threading.current_thread() is threading.main_thread():
    sys.__excepthook__(kind, error, trace)


def use_compilation_cache() -> None:
  """Caches compiled programs for the user, which halves the first step."""
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  try:
    folder = outputs.cache('compiled')
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # RuntimeError: there is no home folder.
    return
  if os.access(folder, os.W_OK):  # Else JAX would warn for each program.
    jax.config.update('jax_compilation_cache_dir', str(folder))
