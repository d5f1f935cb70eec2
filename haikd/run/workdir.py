"""The folder of a run: the config that owns it, and the lock of the run."""

from collections.abc import Iterable, Iterator
import contextlib
import errno
import sys
from typing import Any

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import notes
from haikd.processes import distributed
from haikd.storage import checkpoint
from haikd.storage import files
from haikd.storage import paths

if sys.platform != 'win32':
  import fcntl

CONFIG_FILE = 'config.json'
CHANGES_FILE = 'config_changes.jsonl'
LOCK_FILE = '.lock'

# Folders in the workdir, for the teacher and the student alone.
TEACHER, BASELINE = 'teacher', 'baseline'
SEED = 'seed-'  # What the folder of one of several seeds begins with.

# Fields that may differ between two starts of one run: they decide how long it
# trains, where and how often it reads and writes, and how the work is
# distributed, but not what is minimised.
FREE_FIELDS = ('steps', 'log_every', 'checkpoint_every', 'checkpoint_on_error',
               'keep_checkpoints',
               'baseline', 'evaluation.every', 'evaluation.split',
               'evaluation.final', 'evaluation.batch_size',
               'evaluation.metrics', 'evaluation.patience',
               'data.source_dir', 'data.data_dir',
               'data.prefetch', 'data.workers', 'data.memory_mib',
               'data.on_error', 'data.max_skipped', 'mesh', 'microbatches',
               'student.remat',
               'student.remat_modules', 'student.placement', 'teacher.remat',
               'teacher.remat_modules', 'teacher.placement', 'report',
               'sweep', 'tracker', 'guard', 'profile',
               # Checkpoints know their content, as that of a teacher.
               'teacher.records', 'teacher.server')

# Those of them that may not if the best network is kept.
_OF_BEST = ('evaluation.split', 'evaluation.metrics')
# With these a run goes on whatever has changed: --allow_config_change.
ALL_FIELDS = tuple(config_lib.base())

_ABSENT = 'nothing'
# Groups of fields that every config.json of a run has.
_GROUPS = {'student', 'teacher', 'data', 'optimizer', 'evaluation'}
# What a run would overwrite, where a folder has no config.json of a run.
_OUTPUTS = ('metrics.jsonl', 'result.json', 'report.html')
# The errors of flock on a filesystem without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP,
             errno.EINVAL)


@contextlib.contextmanager
def lock(workdir: files.Path) -> Iterator[None]:
  """Locks a workdir for this run; use it in a `with` statement.

  Process 0 holds the lock for all processes of the run. The operating system
  releases it when that process ends, however it ends. On a filesystem without
  locks, nothing is locked. Buckets are not locked: a lock would outlive a
  killed run. Start one run at a time there; two would interleave checkpoints.

  Args:
    workdir: the folder to lock, created if missing.

  Raises:
    DataError: another run works there, it cannot be written to, or it holds
      files of others that the run would overwrite.
  """
  workdir = paths.as_path(workdir)
  distributed.first(lambda: _refuse_others(workdir))
  with contextlib.ExitStack() as stack:
    if sys.platform != 'win32' and not paths.is_remote(workdir):
      distributed.first(lambda: _acquire(stack, workdir))
    yield


def claim(workdir: files.Path,
          config: config_lib.ConfigDict,
          *,
          free: Iterable[str] = FREE_FIELDS,
          create: bool = True) -> None:
  """Makes a config the owner of a workdir, or checks that it is.

  A workdir has no owner until a checkpoint is saved in it, or in the folder of
  its teacher or of its student alone.

  Args:
    workdir: the folder to claim.
    config: the config, which is written to `config.json`.
    free: fields, or groups of fields, that may differ from the owner's.
    create: whether to claim, and create if missing, a workdir without an owner.
      If False, a workdir without `config.json` is refused.

  Raises:
    ConfigError: a field of the config holds a value that JSON cannot.
    DataError: another config owns the workdir, or it cannot be used.
  """
  workdir = paths.as_path(workdir)
  try:
    config = _relative(files.to_json(config), paths.absolute(workdir))
  except TypeError as err:
    raise checks.ConfigError(
        'config must hold only what JSON can; got a value that it cannot '
        f'({checks.describe(err)}). Use names in place of objects.') from err
  distributed.first(lambda: _claim(workdir, config, tuple(free), create))


def check_owner(workdir: files.Path, config: config_lib.ConfigDict,
                free: Iterable[str] = FREE_FIELDS) -> None:
  """Refuses a workdir that another config owns; claims nothing.

  Args:
    workdir: the folder.
    config: as for `claim`.
    free: as for `claim`.

  Raises:
    DataError: another config owns it, or as `lock`.
  """
  workdir = paths.as_path(workdir)
  distributed.first(lambda: _refuse_others(workdir))
  if distributed.first(lambda: _has_checkpoint(workdir)):
    claim(workdir, config, free=free, create=False)


def _relative(config, workdir):
  """Returns a config in which a teacher in the workdir moves along with it."""
  init, above = config['teacher']['init'], f'{workdir}/'
  if not init or not init.startswith(above):
    return config
  teacher = {**config['teacher'], 'init': init.removeprefix(above)}
  return {**config, 'teacher': teacher}


def _acquire(stack, workdir):
  """Locks a workdir until the stack of contexts is closed."""
  with _writing(workdir):
    paths.make_folder(workdir)
    path = paths.as_path(workdir) / LOCK_FILE
    file = stack.enter_context(open(path, 'w', encoding='utf-8'))
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as err:
    if err.errno not in _NO_LOCKS:
      raise checks.DataError(
          f'--workdir must be used by one run at a time; got {workdir}, where '
          f'another is at work ({checks.one_line(err)}). Wait until it is '
          'done, or choose another --workdir.') from err


def _refuse_others(workdir):
  """Refuses a folder with files of others that a run would overwrite."""
  path = workdir / CONFIG_FILE
  name = None
  if paths.exists(path):
    content = files.read_json(path)
    if not isinstance(content, dict) or not _GROUPS <= set(content):
      name = CONFIG_FILE
  elif not _has_checkpoint(workdir):
    name = next((x for x in _OUTPUTS if paths.exists(workdir / x)), None)
  if name:
    raise checks.DataError(
        f'--workdir must be empty, missing or that of a run; got {workdir}, '
        f'whose {name} no run has written. Choose another --workdir.')


def _claim(workdir, config, free, create):
  _refuse_others(workdir)
  path = workdir / CONFIG_FILE
  if paths.exists(path) and (not create or _has_checkpoint(workdir)):
    changes = _check_owner(path, config, free, create)
    if create:
      with _writing(workdir):
        if changes:
          _record(workdir, changes)
        files.write_json(path, config)
  elif not create:
    raise checks.DataError(
        f'--workdir must be that of a run; got {workdir}, which has no '
        f'{CONFIG_FILE}. Train first, or correct --workdir.')
  else:
    with _writing(workdir):
      paths.make_folder(workdir)
      files.write_json(path, config)


def _has_checkpoint(workdir):
  return any(
      checkpoint.has_checkpoint(workdir / folder)
      for folder in ('', TEACHER, BASELINE))


@contextlib.contextmanager
def _writing(workdir):
  try:
    yield
  except OSError as err:
    raise paths.unwritable(workdir, err) from err


def _record(workdir, changes):
  """Adds what has changed to what had changed before."""
  path = workdir / CHANGES_FILE
  rows = [*files.read_rows(path),
          dict(step=checkpoint.steps_taken(workdir), changes=changes)]
  files.replace(path, ''.join(f'{files.encode(row)}\n' for row in rows))


def _check_owner(path, config, free, says):
  """Refuses a config that differs from the owner's in a field that is bound.

  Returns:
    `{field: [old value, new value]}` of all that differ.
  """
  # A field that is younger than the owner has its default there.
  defaults = flat(files.to_json(config_lib.base()))
  old, new = flat(files.read_json(path)), flat(config)
  old = {**{name: default for name, default in defaults.items() if not any(
      x.startswith(f'{name}.') for x in old)}, **old}
  if new['evaluation.keep_best']:  # What decides which network is the result.
    free = [field for field in free if field not in _OF_BEST]
  changes = {
      name: [old.get(name, _ABSENT), new.get(name, _ABSENT)]
      for name in sorted({**old, **new})
      if old.get(name, _ABSENT) != new.get(name, _ABSENT)}
  if bound := _told(changes, free):
    raise checks.DataError(
        f'--workdir must belong to this config; got {bound} in {path}. Choose '
        'another --workdir, remove this one, or go on with what is there under '
        '--allow_config_change.')
  if says and (bound := _told(changes, FREE_FIELDS)):
    notes.say(f'{path.parent} goes on with another config: {bound}. '
              f'{CHANGES_FILE} has all of it.')
  if says and new['steps'] != old['steps']:
    notes.say(f'config.steps is {new["steps"]}, where it was {old["steps"]}. '
              'The learning rate goes on where it is in a run of '
              f'{new["steps"]} steps.')
  return changes


def _told(changes, free):
  """Returns in words what has changed in fields that are not free, or ''."""
  return checks.abbreviate([
      f'config.{name}={new!r} where it has {old!r}'
      for name, (old, new) in changes.items()
      if not any(f'{name}.'.startswith(f'{field}.') for field in free)],
                           limit=3)


def flat(config: Any, prefix: str = '') -> dict[str, Any]:
  """Returns `{dotted name: value}` of nested dicts.

  Args:
    config: a dict, or a value.
    prefix: what names begin with.
  """
  if not isinstance(config, dict):
    return {prefix: config}
  fields = {}
  for name, value in config.items():
    fields.update(flat(value, f'{prefix}.{name}' if prefix else name))
  return fields
