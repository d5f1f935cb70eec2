"""The folder of a run: whose it is, and that one run at a time works in it."""

from collections.abc import Iterable, Iterator
import contextlib
import errno

import ml_collections

from haikd.core import checks
from haikd.processes import distributed
from haikd.storage import checkpoint
from haikd.storage import files
from haikd.storage import leaves
from haikd.storage import paths

try:
  import fcntl
except ImportError:  # Not on Windows.
  fcntl = None

CONFIG_FILE = 'config.json'
LOCK_FILE = '.lock'

# Below the workdir of a student, what else is trained with it.
TEACHER, BASELINE = 'teacher', 'baseline'

# What may differ between two starts of one run: where and how often it reads
# and writes, and how the work is laid out, not what is minimised.
FREE_FIELDS = ('log_every', 'checkpoint_every', 'keep_checkpoints', 'baseline',
               'evaluation', 'data.source_dir', 'data.data_dir',
               'data.prefetch', 'mesh', 'microbatches', 'student.remat',
               'student.remat_modules', 'student.placement', 'teacher.remat',
               'teacher.remat_modules', 'teacher.placement')

_ABSENT = 'nothing'
# What flock answers where a filesystem has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP,
             errno.EINVAL)


@contextlib.contextmanager
def lock(workdir: files.Path) -> Iterator[None]:
  """Keeps a workdir for this run; use it in a `with` statement.

  The operating system lets go of it when the process ends, however it ends.
  The first process of a run speaks for all of them. Where the filesystem has no
  locks, nothing is locked. Nor is a bucket, where a lock would outlive a run
  that is killed and keep it from being started again: there it is up to you to
  start one run at a time in a workdir. Of two, the checkpoints would be mixed.

  Args:
    workdir: made if it is not there.

  Raises:
    DataError: another run is at work there, or it cannot be written.
  """
  with contextlib.ExitStack() as stack:
    if fcntl is not None and not paths.is_remote(workdir):
      distributed.first(lambda: _acquire(stack, workdir))
    yield


def claim(workdir: files.Path,
          config: ml_collections.ConfigDict,
          *,
          free: Iterable[str] = FREE_FIELDS,
          create: bool = True) -> None:
  """Makes a workdir the home of a config, or checks that it is.

  A workdir is anybody's until something is saved in it, or in the folders of
  its teacher and of its baseline.

  Args:
    workdir: made if it is not there.
    config: is written to `config.json`.
    free: fields, or groups of them, that may have changed since.
    create: whether a workdir without a `config.json` is taken; else refused.

  Raises:
    ConfigError: a field of the config holds what JSON cannot.
    DataError: the workdir belongs to another config, or cannot be used.
  """
  workdir = paths.as_path(workdir)
  try:
    config = files.to_json(config)
  except TypeError as err:
    raise checks.ConfigError(
        f'workdir.claim: config must hold what JSON can; got '
        f'{checks.one_line(err)} Use names in place of objects.') from err
  distributed.first(lambda: _claim(workdir, config, tuple(free), create))


def _acquire(stack, workdir):
  """Locks a workdir until a stack of contexts is left."""
  with _writing(workdir):
    paths.make_folder(workdir)
    path = paths.as_path(workdir) / LOCK_FILE
    file = stack.enter_context(open(path, 'w', encoding='utf-8'))
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as err:
    if err.errno not in _NO_LOCKS:
      raise checks.DataError(
          'workdir.lock: workdir must be used by one run at a time; got '
          f'workdir={workdir}, where another is at work '
          f'({checks.one_line(err)}). Wait until it is done, or choose '
          'another --workdir.') from err


def _claim(workdir, config, free, create):
  path = workdir / CONFIG_FILE
  if paths.exists(path) and (not create or _has_checkpoint(workdir)):
    _check_owner(path, config, free)
  elif not create:
    raise checks.DataError(
        f'workdir.claim: workdir must be that of a run; got no {path}. '
        'Train first, or correct --workdir.')
  else:
    with _writing(workdir):
      paths.make_folder(workdir)
      files.write_json(path, config)


def _has_checkpoint(workdir):
  return any(
      checkpoint.has_checkpoint(workdir / part)
      for part in ('', TEACHER, BASELINE))


@contextlib.contextmanager
def _writing(workdir):
  try:
    yield
  except OSError as err:
    raise checks.DataError(
        f'workdir.claim: workdir must be a folder to write to; got {workdir} '
        f'({checks.one_line(err)}). Choose another --workdir.') from err


def _check_owner(path, config, free):
  owner = files.read_json(path)
  old, new = _fields(owner), _fields(config)
  differ = [
      f'config.{name}={new.get(name, _ABSENT)!r} where it has '
      f'{old.get(name, _ABSENT)!r}' for name in sorted({**old, **new})
      if old.get(name, _ABSENT) != new.get(name, _ABSENT) and
      not any(f'{name}.'.startswith(f'{field}.') for field in free)
  ]
  if differ:
    raise checks.DataError(
        'workdir.claim: workdir must belong to this config; got '
        f'{leaves.first(differ)} in {path}. Choose another --workdir, or '
        'remove this one.')


def _fields(config, prefix=''):
  """Returns `{dotted name: value}` of nested dicts."""
  if not isinstance(config, dict):
    return {prefix: config}
  fields = {}
  for name, value in config.items():
    fields.update(_fields(value, f'{prefix}.{name}' if prefix else name))
  return fields
