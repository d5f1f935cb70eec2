"""Readies the folder of a run's checkpoints when the run starts."""

from haikd.core import checks
from haikd.core import notes
from haikd.storage import paths
from haikd.storage import publishing
from haikd.storage import step_folder

ASIDE = 'damaged_checkpoints'


def prepare(folder: paths.ConcretePath) -> list[int]:
  """Readies a folder of checkpoints; returns the steps of complete ones.

  Args:
    folder: made if it is missing. Damaged checkpoints that are newer than a
      good one are moved beside it, to `damaged_checkpoints`.

  Raises:
    DataError: all are damaged, or the folder cannot be written to.
  """
  _set_damaged_aside(folder)
  with publishing.writing(folder):
    paths.make_folder(folder)
    for name in publishing.remove_leftovers(folder):
      notes.say(f'{folder / name} is left alone, since this run did not write '
                'it.')
  return sorted(int(x.name) for x in step_folder.complete(folder))


def _set_damaged_aside(folder):
  aside = folder.parent / ASIDE
  damaged = step_folder.damaged(folder)
  if damaged and not step_folder.find(folder):
    raise checks.DataError(
        f'checkpoint must be as it was saved; got {damaged[0]}, where '
        f'{step_folder.problem(damaged[0])}. Bring back its files, or choose '
        'another --workdir.')
  with publishing.writing(folder):
    for path in damaged:
      aside.mkdir(exist_ok=True)
      number = sum(name.split('-')[0] == path.name
                   for name in paths.names(aside))
      path.rename(aside / (f'{path.name}-{number}' if number else path.name))
