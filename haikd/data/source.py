"""What a data set is, and how a config's name becomes one."""

from collections.abc import Mapping
import inspect
import pathlib
import re
from typing import Any, NamedTuple, Optional, Protocol

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import foreign
from haikd.data import prepared
from haikd.data import spec as spec_lib

RESERVED = ('split', 'source_dir', 'data_dir')


class Source(Protocol):
  """One split of a data set: examples that can be read in any order.

  An example is a dict of arrays (or numbers), and all examples have the same
  keys and shapes; what is ragged is padded and says so in its mask. These keys
  have a meaning, all of them optional:

    label: an integer or `[N]` integers below `num_classes`, -100 for none, or
      probabilities with a trailing axis V. Already aligned to the logits. A
      floating-point number where there are no classes: what is to be measured
      against, such as how alike two sentences are.
    mask: bool `[N]`, true where a position is real.
    target_mask: bool `[N]`, true where a position's logits count.
    image: `[height, width, channels]`. uint8 is divided by 255; then come
      augmentation and `(image - mean) / std`.

  Every other key is an input of the networks: one alone is passed as it is,
  several as a dict. A Source that is too large for memory is read by several
  threads at once.

  Attributes:
    num_classes: V, the number of classes or the size of the vocabulary; None
      if there are no labels to say so.
    text: a TextInfo, if examples are made of text; may be left out.
  """

  num_classes: Optional[int]

  def __len__(self) -> int:
    """Returns the number of examples."""

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    """Returns an example."""


class TextInfo(NamedTuple):
  """How the texts of a data set became numbers.

  Attributes:
    tokenizer: the folder of the tokenizer, with `tokenizer.json`.
    size: V, the size of its vocabulary.
    kept_ids: int32 `[V]`, for each of its ids that of the tokenizer it was
      pruned from; None if it is whole.
  """

  tokenizer: str
  size: int
  kept_ids: Optional[np.ndarray] = None

  @property
  def identity(self) -> str:
    """What tells it from other tokenizers: the folder is called by a hash."""
    return pathlib.PurePath(self.tokenizer).name


class Subset:
  """Some consecutive examples of a Source.

  Attributes:
    num_classes: those of the whole.
    text: likewise.

  Args:
    source: the whole.
    indices: which of its examples.
  """

  def __init__(self, source: Source, indices: range):
    self._source = source
    self._indices = indices
    self.num_classes = source.num_classes
    self.text = text_info(source)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    return self._source[self._indices[index]]


class Arrays:
  """A Source that is held in memory, as one array for every key.

  Attributes:
    num_classes: V, or None.
    columns: `{key: array}`, `[size, ...]` each.
  """

  def __init__(self, columns: Mapping[str, Any], *,
               num_classes: Optional[int] = None):
    self.num_classes = num_classes
    self.columns = {key: np.asarray(value) for key, value in columns.items()}
    sizes = {key: len(value) for key, value in self.columns.items()}
    if len(set(sizes.values())) != 1:
      raise checks.DataError(
          'source.Arrays: columns must have the same number of examples; got '
          f'{sizes or "no columns"}. Give every key one entry an example.')
    self._size = min(sizes.values())

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return {key: value[index] for key, value in self.columns.items()}


def text_info(source: Source) -> Optional[TextInfo]:
  """Returns how the texts of a Source became numbers, None if it has none."""
  return getattr(source, 'text', None)


def open_source(name: str,
                split: str,
                *,
                options: Optional[Mapping[str, Any]] = None,
                source_dir: Optional[str] = None,
                data_dir: Optional[str] = None) -> Source:
  """Opens one split of a data set.

  Args:
    name: a registered data set, or one of tfds that is prepared in `data_dir`.
    split: 'train', 'validation', 'test' or what else the data set has, or a
      part of one, such as 'train[:500]', 'train[80%:]' or 'test[-9:]'.
    options: keyword options of the data set.
    source_dir: the folder of its raw files.
    data_dir: the folder of prepared files.

  Returns:
    A Source with at least one example.

  Raises:
    ConfigError: an unknown name, an option the data set does not take, or a
      value of another type than its annotation.
    DataError: an unknown or empty split, files that cannot be used, or whatever
      else the data set's function raises.
  """
  if name in registry.datasets.names():
    function = registry.datasets[name].function
  else:
    function = prepared.named(name, data_dir)
  options = dict(options or {})
  folders = dict(source_dir=source_dir, data_dir=data_dir)
  _check_options(function, options)
  whole, part = _parse_split(split)
  folders = _accepted(name, function, folders)
  with foreign.calling(f'source.open_source: data set {name!r} must open split '
                       f'{split!r}'):
    source = function(whole, **folders, **options)
  for attribute in ('__len__', '__getitem__', 'num_classes'):
    if not hasattr(source, attribute):
      raise checks.ConfigError(
          f'source.open_source: data set {name!r} must return a Source, with '
          f'{attribute}; got {type(source).__name__}. haikd.data.Arrays makes '
          'one of arrays.')
  source = part(source)
  if not len(source):
    raise checks.DataError(
        f'source.open_source: split {split!r} of {name!r} must have examples; '
        'got size=0. Choose another split, or prepare the data again.')
  return source


def describe(name: str,
             *,
             options: Optional[Mapping[str, Any]] = None,
             source_dir: Optional[str] = None,
             data_dir: Optional[str] = None) -> Optional[spec_lib.Spec]:
  """Says what the examples of a data set are like; its files may be elsewhere.

  Args:
    name: a registered data set, or one of tfds.
    options: keyword options of the data set.
    source_dir: the folder of its raw files; not looked into.
    data_dir: the folder of prepared files, which need not be there.

  Returns:
    A Spec; None if whoever registered the data set gave none, or if with these
    options only the data can say.

  Raises:
    ConfigError: an unknown name, or options that it does not take.
    DataError: what else the data set's own description raises.
  """
  del source_dir
  options = dict(options or {})
  if name in registry.datasets.names():
    function, spec, _ = registry.datasets[name]
    if spec is None:
      return None
  else:
    function = spec = prepared.described(name, data_dir)
  _check_options(function, options)
  with foreign.calling(f'source.describe: data set {name!r} must say what an '
                       'example is like'):
    described = spec(**options)
    return None if described is None else spec_lib.Spec(*described)


def check_split(where: str, split: str, known: tuple[str, ...]) -> None:
  """Raises DataError unless `split` is one of `known`."""
  if split not in known:
    raise checks.DataError(
        f'{where}: split must be one the data set has; got split={split!r}. '
        f'{checks.suggest(split, known)}')


def _check_options(function, options):
  where = 'config.data.options'
  checks.check_options(where, function, options, reserved=RESERVED)
  foreign.check_types(where, function, options)


def _parse_split(split):
  """Returns a split's name and a function from it to the part asked for."""
  name, bracket, rest = split.partition('[')
  if not bracket:
    return split, lambda source: source
  match = re.fullmatch(r'(-?\d+%?)?:(-?\d+%?)?\]', rest)
  if not match:
    raise checks.DataError(
        "source.open_source: split must be a name or a part such as 'train[:9]'"
        f" or 'train[80%:]'; got split={split!r}.")

  def bound(text, size):
    if text is None:
      return None
    if text.endswith('%'):
      return round(int(text[:-1]) / 100 * size)
    return int(text)

  def part(source):
    size = len(source)
    bounds = (bound(text, size) for text in match.groups())
    return Subset(source, range(size)[slice(*bounds)])

  return name, part


def _accepted(name, function, folders):
  """Returns the folders a data set takes; refuses one that would be ignored."""
  names = checks.option_names(function)
  parameters = inspect.signature(function).parameters.values()
  if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
    names |= set(folders)
  for folder, path in folders.items():
    if path is not None and folder not in names:
      raise checks.ConfigError(
          f'source.open_source: config.data.{folder} must be None for {name!r},'
          f' which has no use for it; got {path!r}.')
  return {key: path for key, path in folders.items() if key in names}
