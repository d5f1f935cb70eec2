"""Mixtures: several data sets that are read as one, by weights."""

from collections.abc import Iterator, Mapping
import contextlib
import itertools
import os
from typing import Any, Optional, Union

import numpy as np

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import registry
from haikd.core import signatures
from haikd.data import orders
from haikd.data import reader as reader_lib
from haikd.data import reading as reading_lib
from haikd.data import source as source_lib
from haikd.data import spec as spec_lib
from haikd.data import weights as weights_lib
from haikd.data.image import views

# Options that are compared with those of the networks.
_COMMON = ('tokenizer', 'student_tokenizer', 'vocabulary', 'prune')

AnyReader = Union[reader_lib.Reader, 'MixedReader']
AnySplits = Union[reader_lib.Splits, 'MixedSplits']


class MixedReader:
  """Reads examples of one split of each data set of a mixture.

  Indices count through the data sets one after another.

  Attributes:
    split: its name, for messages.
    num_classes: V, or None.
    class_names: the names of the classes, or None.

  Args:
    split: its name.
    parts: the reader of each data set.
    weights: the weight of each, at each step.

  Raises:
    DataError: the data sets differ in their classes or tokenizers.
  """

  def __init__(self, split: str, parts: Mapping[str, reader_lib.Reader],
               weights: orders.Weights):
    self.split = split
    self._parts = parts
    self._weights = weights
    self._ends = np.cumsum([len(part) for part in parts.values()])
    first = next(iter(parts.values()))
    self.num_classes = first.num_classes
    self.class_names = first.class_names
    _check_same('the number of classes, or size of the vocabulary', {
        name: part.num_classes for name, part in parts.items()})
    _check_same('the names of classes', {
        name: part.class_names for name, part in parts.items()},
        ' Set config.data.options.classes to all names, which then have the '
        'same order everywhere.')
    for role in ('teacher', 'student'):
      texts = {name: part.text_of(role) for name, part in parts.items()}
      _check_same('the tokenizer', {
          name: text and (text.own or text.tokenizer)
          for name, text in texts.items()},
          ' prune=True makes a tokenizer for each: set it to False.')
      chosen = {name: text.tokenizer for name, text in texts.items()
                if text and text.own}
      if chosen:
        _check_same('the chat template that options choose', chosen)

  def __len__(self) -> int:
    return int(self._ends[-1])

  @property
  def cached(self) -> bool:
    """Whether the split is in memory."""
    return all(part.cached for part in self._parts.values())

  @property
  def vary(self) -> Any:
    """That of one of its data sets, None if nothing in them is random."""
    return next(filter(None, (x.vary for x in self._parts.values())), None)

  @property
  def task(self) -> Optional[str]:
    """What the labels are, one of `tasks.OF_LABELS`; None without labels."""
    found = {name: part.task for name, part in self._parts.items()}
    _check_same('what their labels are', found, ' Set config.task.')
    return next(iter(found.values()))

  def expect(self, task: str, num_classes: Optional[int]) -> None:
    """Sets what labels are as in training; `config.task` comes first."""
    self.num_classes = num_classes
    for part in self._parts.values():
      part.expect(task, num_classes)

  def text_of(self, role: str) -> Optional[source_lib.TextInfo]:
    """Returns the TextInfo of the 'teacher' or 'student', or None."""
    texts = [text for part in self._parts.values()
             if (text := part.text_of(role))]
    if not texts:
      return None
    ends = itertools.chain.from_iterable(text.ends for text in texts)
    # The chat template of an export is that which some of the data chose.
    chosen = next((text for text in texts if text.own), texts[0])
    return chosen._replace(ends=tuple(dict.fromkeys(ends)))

  def load(self) -> None:
    """Decodes and checks what is small enough to keep."""
    for part in self._parts.values():
      part.load()

  def say_absent_classes(self) -> None:
    """Says which classes no example has; as `reader.Reader` does."""
    for part in self._parts.values():
      part.say_absent_classes()

  def has(self, count: int) -> bool:
    """Returns whether the split has so many examples."""
    return len(self) >= count

  def order(self, batch_size: int, seed: int) -> orders.Mixed:
    """Returns the order in which training reads it."""
    return orders.Mixed(
        {name: len(part) for name, part in self._parts.items()}, self._weights,
        batch_size=batch_size, seed=seed)

  def gather(self, indices: reader_lib.Indices,
             fit: Optional[views.Fit] = None,
             keys: Optional[reader_lib.Keys] = None) -> reader_lib.Columns:
    """Reads some examples, as `reader.Reader.gather` does."""
    indices = np.asarray(indices)
    numbers = np.searchsorted(self._ends, indices, side='right')
    columns: reader_lib.Columns = {}
    layouts = {}
    for number, (name, part) in enumerate(self._parts.items()):
      places = np.flatnonzero(numbers == number)
      if not len(places):
        continue
      start = self._ends[number] - len(part)
      examples = part.gather(
          indices[places] - start, fit=fit,
          keys=None if keys is None else [
              keys[place] for place in places.tolist()])
      layouts[name] = {key: (value.shape[1:], str(value.dtype))
                       for key, value in sorted(examples.items())}
      _check_same('the keys, shapes and dtypes of examples', layouts)
      for key, value in examples.items():
        column = columns.setdefault(
            key, np.empty((len(indices), *value.shape[1:]), value.dtype))
        column[places] = value
    return columns


class MixedSplits:
  """The splits of a mixture, each opened once and decoded once.

  Attributes:
    dataset: the `dataset` of each part, and the weights.

  Args:
    parts: the splits of each data set.
    weights: the weight of each, at each step.
  """

  def __init__(self, parts: Mapping[str, reader_lib.Splits],
               weights: orders.Weights):
    self._parts = parts
    self._weights = weights
    self._readers: dict[str, AnyReader] = {}
    self.dataset = dict(
        weights=weights,
        parts={name: part.dataset for name, part in parts.items()})

  def reader(self, split: str, field: str) -> AnyReader:
    """Returns the reader of a split, and opens the split at the first call.

    Args:
      split: any split that all data sets have, or a slice, which is taken of
        each; '<name>/<split>' for that of one data set alone.
      field: the config field that holds `split`, for messages.

    Returns:
      A reader.

    Raises:
      ConfigError: a config whose data sets cannot be opened.
      DataError: an unknown or empty split, files that cannot be used, or data
        sets that do not fit together.
    """
    if split not in self._readers:
      alone, _, rest = split.partition('/')
      if rest and alone in self._parts:
        self._readers[split] = self._open(alone, rest, field)
      else:
        self._readers[split] = MixedReader(
            split, {name: self._open(name, split, field)
                    for name in self._parts}, self._weights)
    return self._readers[split]

  def describe(self) -> Optional[spec_lib.Spec]:
    """Returns the Spec of an example, None if only the data tells it.

    Raises:
      ConfigError: options that a data set does not take.
      DataError: data sets whose examples differ.
    """
    specs = {}
    for name, part in self._parts.items():
      with _naming(name):
        spec = part.describe()
      if spec is None:
        return None
      specs[name] = spec
    _check_same('the keys, shapes and dtypes of examples', {
        name: (sorted(spec.columns.items()), spec.num_classes)
        for name, spec in specs.items()})
    return next(iter(specs.values()))

  def _open(self, name, split, field):
    with _naming(name):
      return self._parts[name].reader(split, field)


def build_splits(config: config_lib.ConfigDict) -> AnySplits:
  """Returns the splits of the data set or mixture of a config.

  Args:
    config: of the run.

  Raises:
    ConfigError: a weight that is no number and no schedule, or an option that
      no data set takes.
  """
  data, options = config.data, config_lib.plain(config.data.options)
  reading = reading_lib.Reading(
      data.memory_mib, data.on_error, data.max_skipped)
  common: Any = dict(task=config.task, data_dir=data.data_dir, reading=reading)
  if not data.mixture:
    return reader_lib.Splits(name=data.name, options=options,
                             source_dir=data.source_dir, **common)
  parts, weights = {}, weights_lib.build(config)
  unused = set(options)
  for name in sorted(data.mixture):  # A saved config may have another order.
    entry = config_lib.component(data.mixture[name])
    own, folder = config_lib.plain(entry.options), entry.source_dir
    for option in {*own} & {*_COMMON}:
      raise checks.ConfigError(
          f'config.data.mixture.{name}.options.{option} must be left out; got '
          f'{own[option]!r}. Set config.data.options.{option}, which holds for '
          'all.')
    if folder is None and data.source_dir is not None:
      folder = os.path.join(data.source_dir, name)
    shared = {option: value for option, value in options.items()
              if not entry.name or _takes(entry.name, option)}
    unused -= set(shared)
    parts[name] = reader_lib.Splits(
        name=entry.name or data.name, options={**shared, **own},
        source_dir=folder, **common)
  if not any(part.dataset['name'] == data.name for part in parts.values()):
    raise checks.ConfigError(
        'config.data.name must be the name of a data set of the mixture; got '
        f'{data.name!r}. Set it to that of one of them.')
  if unused:
    raise checks.ConfigError(
        'config.data.options must have options that a data set of the mixture '
        f'takes; got {sorted(unused)}. Leave them out.')
  return MixedSplits(parts, weights)


def _takes(name, option):
  return (name in registry.datasets.names() and option in
          signatures.option_names(registry.datasets[name].function))


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
  """Adds to an error which data set of the mixture it is about."""
  try:
    yield
  except (checks.ConfigError, checks.DataError) as err:
    # A subclass may take other arguments.
    kind = (checks.ConfigError if isinstance(err, checks.ConfigError) else
            checks.DataError)
    raise kind(f'{err} (config.data.mixture.{name})') from err


def _check_same(what: str, values: Mapping[str, Any], remedy: str = '') -> None:
  """Raises DataError unless all data sets of a mixture have one value."""
  first, *others = values.items()
  for other in others:
    if other[1] != first[1]:
      raise checks.DataError(
          f'config.data.mixture must have data sets that agree in {what}; got '
          f'{first[1]} in {first[0]} and {other[1]} in {other[0]}.'
          f'{remedy or " Give them the same options."}')
