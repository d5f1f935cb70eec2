"""Which files hold a split, by their names.

A split is one file, a set of shards with names such as
`train-00000-of-00003.parquet`, a folder of files, or a folder that `datasets`
has saved.
"""

import collections
import os
import re
from typing import NamedTuple, Optional

from haikd.core import checks
from haikd.data.records import hints
from haikd.storage import files
from haikd.storage import inputs
from haikd.storage import paths

# A parquet or Arrow file is compressed inside, and read from its end.
STREAMED = ('.txt', '.jsonl', '.json', '.csv', '.tsv')
FORMATS = (*STREAMED, '.parquet', '.arrow')
COMPRESSIONS = ('.gz', '.zst')

_HOW_TO_NAME = (
    f'A split is a file <split> with one of the suffixes {", ".join(FORMATS)}, '
    'a set of shards such as <split>-00000-of-00003.parquet, or a folder '
    f'<split> of such files. {" or ".join(COMPRESSIONS)} may follow the suffix '
    'of a text.')
# The Hub has names with a hash as well: train-00000-of-00001-a09b74b3ef9c3b56.
_SHARD = re.compile(r'(?:(?P<set>.*)[-_.])?(?P<number>\d+)-of-(?P<total>\d+)'
                    '(?:-[0-9a-f]{16})?')
_LOOKED_INTO = 50  # Folders in which a missing split is looked for, at most.
_STATE = 'state.json'  # In a folder that `Dataset.save_to_disk` has written.


class Name(NamedTuple):
  """The parts of a file's name.

  Attributes:
    stem: what precedes the format.
    format: one of FORMATS.
    compression: one of COMPRESSIONS, or ''.
  """

  stem: str
  format: str
  compression: str

  @property
  def suffix(self) -> str:
    """The format with the compression, in lower case."""
    return self.format + self.compression


Files = list[tuple[paths.ConcretePath, Name]]


def parse(path: os.PathLike) -> Optional[Name]:
  """Returns the parts of a file's name; None for a file that holds no texts.

  Args:
    path: the file, which need not exist. Suffixes may be in upper case, and a
      hidden file holds no texts.
  """
  stem, compression = os.path.basename(path), ''
  for suffix in COMPRESSIONS:
    if stem.lower().endswith(suffix):
      stem, compression = stem[:-len(suffix)], suffix
  for suffix in STREAMED if compression else FORMATS:
    if stem.lower().endswith(suffix) and not stem.startswith('.'):
      return Name(stem[:-len(suffix)], suffix, compression)
  return None


def find(folder: paths.ConcretePath, split: str) -> Files:
  """Returns the files of a split, in order, with their names.

  Args:
    folder: `config.data.source_dir`.
    split: the name of the split.

  Raises:
    DataError: there is no such split, it is there in several ways, or a shard
      is missing.
  """
  entries = inputs.entries(folder)
  if _STATE in _names(entries, folders=False):
    return _saved_alone(folder, split)
  named = _texts_in(entries)
  # Each candidate: how a message names it, and its files.
  candidates = [(path.name, [(path, name)]) for path, name in named
                if name.stem == split]
  shards: dict[str, Files] = {}
  for path, name in named:
    match = _SHARD.fullmatch(name.stem)
    if match and match['set'] == split:
      shards.setdefault(name.suffix, []).append((path, name))
  candidates += [(f'shards such as {found[0][0].name}', found)
                 for found in shards.values()]
  if split in _names(entries, folders=True):
    candidates.append((split, []))
  if not candidates:
    raise _missing(folder, entries, split)
  if len(candidates) > 1:
    titles = ', '.join(title for title, _ in candidates)
    raise checks.DataError(
        f'Split {split!r} must be one file, one set of shards or one folder; '
        f'got {titles} in {str(folder)!r}. Move all but one of them away.')
  (_, found), = candidates
  _check_finished(found, entries)
  found = found or _inside(folder / split, split)
  _check_shards(found, split)
  return found


def splits(folder: paths.ConcretePath) -> list[str]:
  """Returns the names of the splits in a folder, as `find` takes them."""
  entries = inputs.entries(folder)
  if _STATE in _names(entries, folders=False):
    return [_name_of_saved(folder)]
  return sorted(_splits_in(entries))


def _missing(folder, entries, split):
  """Returns the error of a split that a folder does not have."""
  splits, below = _splits_in(entries), _below(entries, split)
  names = [path.name for path, is_folder in entries
           if not is_folder and path.name.startswith(split)]
  unread = next((name for name in names if hints.of_file(name)), None)
  parts = [name for name in names
           if re.fullmatch(rf'{re.escape(split)}[-_. ]?\(?\d.*', name)]
  if below:
    remedy = f'Set config.data.source_dir to {str(below)!r}, which has it.'
  elif unread:
    remedy = f'{unread!r} is {hints.of_file(unread)}.'
  elif parts:
    remedy = (f'Move {checks.abbreviate(parts)} into a folder {split!r} if '
              'they are its parts.')
  else:
    part = (f"A slice, such as '{min(splits)}[95%:]', is a split as well. "
            if splits else '')
    remedy = f'{checks.suggest(split, splits)} {part}{_HOW_TO_NAME}'
  return checks.DataError(
      f'Split {split!r} must be a file or folder in {str(folder)!r}; got '
      f'neither. {remedy}')


def _below(entries, split):
  """Returns the next folder below that has a split, or None."""
  waiting = collections.deque(entries)
  for _ in range(_LOOKED_INTO):
    while waiting and not waiting[0].is_folder:
      waiting.popleft()
    if not waiting:
      break
    inside = inputs.entries(waiting[0].path)
    if split in _splits_in(inside):
      return waiting[0].path
    waiting.popleft()
    waiting.extend(inside)
  return None


def _splits_in(entries):
  """Returns the names of what may be splits in a folder."""
  names = {path.name for path, is_folder in entries
           if is_folder and _texts_in(inputs.entries(path))}
  for _, name in _texts_in(entries):
    match = _SHARD.fullmatch(name.stem)
    names.add(match['set'] or name.stem if match else name.stem)
  return names


def _names(entries, folders):
  """Returns the names of the folders, or of the files, of a folder."""
  return {path.name for path, is_folder in entries if is_folder == folders}


def _texts_in(entries):
  """Returns the files of a folder that hold texts, by their names, in order."""
  return [(path, name) for path, is_folder in entries
          if not is_folder and (name := parse(path))]


def _inside(folder, split):
  """Returns the files of a split that is a folder."""
  entries = inputs.entries(folder)
  if _STATE in _names(entries, folders=False):
    return _saved(folder)
  below = [path.name for path, is_folder in entries if is_folder and
           _texts_in(inputs.entries(path))]
  if below:
    raise checks.DataError(
        f'Split {split!r} must have all its files in {str(folder)!r}; got the '
        f'folder {below[0]!r} in it, with more of them. Move the files of one '
        'folder to the other.')
  found = _texts_in(entries)
  if not found:
    raise checks.DataError(
        f'Split {split!r} must have files; got the folder {str(folder)!r} '
        f'without any. {_HOW_TO_NAME}')
  _check_finished(found, entries)
  return found


def _check_finished(found, entries):
  """Refuses a file that aria2 is fetching, which has its own name already."""
  names = _names(entries, folders=False)
  for path, _ in found:
    if f'{path.name}.aria2' in names:
      raise checks.DataError(
          f'{str(path)!r} must be complete; got {path.name}.aria2 beside it, '
          'which its download removes when it ends. Go on with it.')


def _saved_alone(folder, split):
  """Returns the files of a data set that was saved without other splits."""
  name = _name_of_saved(folder)
  if name != split:
    raise checks.DataError(
        f'Split {split!r} must be in {str(folder)!r}; got a folder of datasets '
        f'with the split {name!r} alone. Take a slice of it, such as '
        f"'{name}[:90%]' and '{name}[90%:]', or save a DatasetDict.")
  return _saved(folder)


def _name_of_saved(folder):
  return _read_state(folder).get('_split') or 'train'


def _saved(folder):
  """Returns the files of a folder of `Dataset.save_to_disk`, in order."""
  state = _read_state(folder)
  found = [folder / entry['filename'] for entry in state['_data_files']]
  there = _names(inputs.entries(folder), folders=False)
  missing = [path.name for path in found if path.name not in there]
  if missing or not found:
    raise checks.DataError(
        f'{str(folder)!r} must hold all files that its {_STATE} lists; got '
        f'none of {checks.abbreviate(missing) or "any name"}. Copy the folder '
        'again.')
  if state.get('_indices_data_files'):
    raise checks.DataError(
        f'{str(folder)!r} must hold its rows in order; got a selection of rows '
        'beside them, as old versions of datasets write it. Load it and save '
        'it again with `flatten_indices().save_to_disk(…)`.')
  return [(path, Name(path.stem, '.arrow', '')) for path in found]


def _read_state(folder):
  state = files.read_json(folder / _STATE)
  if not isinstance(state, dict) or '_data_files' not in state:
    raise checks.DataError(
        f'{str(folder / _STATE)!r} must be written by `Dataset.save_to_disk`; '
        'got no list of data files in it. Move it away.')
  return state


def _check_shards(found, split):
  """Refuses a set of shards, by their names, of which one is missing."""
  sets: dict[str, dict[str, list[int]]] = {}
  for _, name in found:
    if match := _SHARD.fullmatch(name.stem):
      totals = sets.setdefault(f'{match["set"] or ""}{name.suffix}', {})
      totals.setdefault(match['total'], []).append(int(match['number']))
  for totals in sets.values():
    if len(totals) > 1:
      raise checks.DataError(
          f'Split {split!r} must be one set of shards; got shards of '
          f'{" and of ".join(sorted(totals))}. Move all but one set away.')
    (total, numbers), = totals.items()
    size, width = int(total), len(total)
    first = 0 if 0 in numbers else 1  # Some programs count from 1.
    twice = sorted({n for n in numbers if numbers.count(n) > 1})
    if twice:
      raise checks.DataError(
          f'Split {split!r} must have each shard once; got several files '
          f'{twice[0]:0{width}d}-of-{total} in {str(found[0][0].parent)!r}. '
          'Move one set of them away.')
    names = [f'{number:0{width}d}-of-{total}'
             for number in sorted({*range(first, first + size)} - {*numbers})]
    if names:
      if first and size not in numbers:  # They may count from 0 as well.
        names[-1] = f'{0:0{width}d} or {names[-1]}'
      raise checks.DataError(
          f'Split {split!r} must have its {size} shards; got {len(numbers)} in '
          f'{str(found[0][0].parent)!r}, without {checks.abbreviate(names)}. '
          'Fetch them, or, if a part is meant, rename the files so that '
          f"'-of-{total}' is left out, in a folder {split!r}.")
