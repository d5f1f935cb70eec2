"""What a data set is, and how one is opened by its name in a config."""

from collections.abc import Mapping, Sequence
import inspect
import pathlib
from typing import Any, cast, NamedTuple, Optional, Protocol

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.core import secrets
from haikd.core import signatures
from haikd.data import foreign
from haikd.data import prepared
from haikd.data import reading as reading_lib
from haikd.data import sequences
from haikd.data import spec as spec_lib
from haikd.data import splits
from haikd.processes import watchdog

_OPTIONS = 'config.data.options'
# Arguments that haikd passes to a data set's function, and their fields.
RESERVED = {
    'split': 'config.data.train or config.evaluation',
    'source_dir': 'config.data.source_dir',
    'data_dir': 'config.data.data_dir',
    'reading': 'config.data.memory_mib or on_error',
}


class Source(Protocol):
  """One split of a data set: examples that can be read in any order.

  An example is a dict of arrays or numbers. All examples have the same keys and
  shapes: ragged values are padded, and `mask` marks the padding. These keys
  have a meaning and are optional:

    label: an integer or `[N]` integers below `num_classes`, -100 for none, or
      probabilities with a trailing axis V; aligned to the logits already. If
      several classes may be true, V numbers from 0 to 1. Where `num_classes` is
      None, floating-point numbers to predict, or the similarity of two texts.
    mask: bool `[N]`, true where a position is real.
    target_mask: bool `[N]`, true where a position's logits count.
    weight: 0 or more, how much the example counts: its losses and metrics, and
      its part of their counts, are multiplied by it. One of weight 0 is left
      out, as padding.
    image: `[height, width, channels]`. uint8 is divided by 255; then the image
      is augmented and standardised, `(image - mean) / std`. It may be a
      `decode.Encoded`, which is decoded once it is known what is cut from it.

  Every other key is an input of the networks. A single input is passed as it
  is, several as a dict. If keys begin with `student/`, the student gets these
  inputs and `student/mask` instead, such as a text in other tokens. Several
  threads read a Source that is too large for memory at once.

  Attributes:
    num_classes: V, the number of classes or the size of the vocabulary; None
      for no labels, or numbers. If it is absent, as in a grain.MapDataset, all
      examples are read to find it.
    class_names: V names, if labels are classes that have names; may be absent.
    text: a TextInfo if examples are made from text; may be absent.
    student_text: that of the student's inputs; absent if it has no others.
    vary: `(columns, rngs) -> columns`, draws what is random in a batch, `{key:
      [B, ...]}`, from one `numpy.random.Generator` for each example; may be
      absent. The generator depends on the example and, in training, on the seed
      and the epoch, and on nothing else.
  """

  num_classes: Optional[int]

  def __len__(self) -> int:
    """Returns the number of examples."""

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    """Returns an example."""


class GrowingSource(Source, Protocol):
  """A Source to which examples are still being added, block by block.

  It may be read meanwhile. Its length is known when it is complete, and asking
  for it waits until then.
  """

  @property
  def is_complete(self) -> bool:
    """Whether all examples are there."""

  def block(self, number: int) -> Optional[range]:
    """Returns the indices of a block's examples; waits until it is there.

    Args:
      number: from 0, at most one more than that of the last block asked for.

    Returns:
      A range that begins where the block before ends; None after the last.
    """


class TextInfo(NamedTuple):
  """How the texts of a data set were tokenized.

  Attributes:
    tokenizer: the folder of the tokenizer, with `tokenizer.json`.
    size: V, the size of its vocabulary.
    kept_ids: int32 `[V]`, each id's id in the tokenizer before pruning; None if
      it was not pruned.
    ends: the ids of the tokens that end a text; () for an encoder.
    own: the folder with the tokenizer's own chat template, if that is another.
  """

  tokenizer: str
  size: int
  kept_ids: Optional[np.ndarray] = None
  ends: tuple[int, ...] = ()
  own: str = ''

  @property
  def identity(self) -> str:
    """Identifies the tokenizer: the name of its folder, which is a hash."""
    return pathlib.PurePath(self.tokenizer).name


class Subset:
  """Some consecutive examples of a Source.

  Attributes:
    num_classes: that of the full Source; likewise what else it has.

  Args:
    source: the full Source.
    indices: the indices of the examples in it.
  """

  def __init__(self, source: Source, indices: range):
    self._source = source
    self._indices = indices
    self.num_classes = source.num_classes
    for name in ('class_names', 'text', 'student_text', 'vary'):
      if hasattr(source, name):
        setattr(self, name, getattr(source, name))
    if hasattr(source, '__getitems__'):
      self.__getitems__ = self._read

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    return self._source[self._indices[index]]

  def _read(self, indices: list[int]) -> Sequence[Mapping[str, Any]]:
    """Returns several examples at once."""
    return cast(Any, self._source).__getitems__(
        [self._indices[index] for index in indices])


def text_of(source: Source, role: str) -> Optional[TextInfo]:
  """Returns the TextInfo of the 'teacher' or 'student', or None."""
  text = getattr(source, 'text', None)
  return getattr(source, 'student_text', text) if role == 'student' else text


def growing(source: Source) -> Optional[GrowingSource]:
  """Returns the Source if it is a GrowingSource, else None."""
  return cast(GrowingSource, source) if hasattr(source, 'block') else None


def open_source(name: str,
                split: str,
                *,
                field: str = 'split',
                options: Optional[Mapping[str, Any]] = None,
                source_dir: Optional[str] = None,
                data_dir: Optional[str] = None,
                reading: reading_lib.Reading = reading_lib.Reading()
                ) -> Source:
  """Opens one split of a data set.

  Args:
    name: a registered data set, or one of tfds that is prepared in `data_dir`.
    split: 'train', 'validation', 'test' or another split of the data set, or a
      slice of one, such as 'train[:500]', 'train[80%:]' or 'test[-9:]'.
    field: the config field that holds `split`, for messages.
    options: keyword options of the data set.
    source_dir: the folder of its raw files.
    data_dir: the folder of prepared files.
    reading: how its files are read, for a data set that asks for it.

  Returns:
    A Source with at least one example.

  Raises:
    ConfigError: an unknown name, an option the data set does not take, or an
      option whose type contradicts its annotation.
    DataError: an unknown or empty split, files that cannot be used, or anything
      else that the data set's function raises.
  """
  if name in registry.datasets.names():
    function = registry.datasets[name].function
  else:
    function = prepared.named(name, data_dir)
  options = dict(options or {})
  _check_options(function, options)
  full_split, indices_of = splits.parse(split, field)
  given: dict[str, Any] = _accepted(
      name, function, dict(source_dir=source_dir, data_dir=data_dir))
  if 'reading' in signatures.option_names(function):
    given['reading'] = reading
  try:
    # It may prepare files for hours.
    with watchdog.during(None), foreign.calling(
        f'data set {name!r} must open split {split!r}',
        f'Fix its options or its code, or set {field} to a split that it has, '
        'or to train[90%:]'):
      source = function(full_split, **given,
                        **secrets.resolve(_OPTIONS, options))
  except splits.UnknownSplitError as err:
    raise splits.UnknownSplitError(err.split, err.known, field) from err
  for attribute in ('__len__', '__getitem__'):
    if not hasattr(source, attribute):
      raise checks.ConfigError(
          f'data set {name!r} must return a Source, with {attribute}; got '
          f'{type(source).__name__}. haikd.data.Arrays makes one, and so is a '
          'grain.MapDataset.')
  if not hasattr(source, 'num_classes'):
    source = sequences.Counted(source, full_split)
  if indices_of is not None:
    source = Subset(source, indices_of(len(source)))
  # A growing source finds out by itself, without waiting for its length.
  if growing(source) is None and not len(source):
    raise checks.DataError(
        f'{field} must name a split that has examples; got {split!r} of '
        f'{name!r}, which has none. Choose another split, or prepare the data '
        'again.')
  return source


def describe(name: str,
             *,
             options: Optional[Mapping[str, Any]] = None,
             source_dir: Optional[str] = None,
             data_dir: Optional[str] = None,
             reading: Optional[reading_lib.Reading] = None
             ) -> Optional[spec_lib.Spec]:
  """Returns the Spec of a data set without reading its files.

  Args:
    name: a registered data set, or one of tfds.
    options: keyword options of the data set.
    source_dir: the folder of its raw files; not read.
    data_dir: the folder of prepared files, which need not exist.
    reading: not used, since nothing is read.

  Returns:
    A Spec; None if the data set was registered without one, or if with these
    options only the data tells.

  Raises:
    ConfigError: an unknown name, or options that the data set does not take.
    DataError: anything else that the registered `spec` raises.
  """
  del source_dir, reading
  options = dict(options or {})
  if name in registry.datasets.names():
    entry = registry.datasets[name]
    function, spec = entry.function, entry.spec
    if spec is None:
      return None
  else:
    function = spec = prepared.described(name, data_dir)
  _check_options(function, options)
  with foreign.calling(
      f'the spec of data set {name!r} must describe an example',
      'Fix its options or its code'):
    described = spec(**secrets.resolve(_OPTIONS, options))
    return None if described is None else spec_lib.Spec(*described)


def _check_options(function, options):
  field = _OPTIONS
  for name, origin in RESERVED.items():
    if name in options:
      raise checks.ConfigError(f'{field}.{name} must be left out; got '
                               f'{options[name]!r}. Set {origin} instead.')
  signatures.check_options(field, function, options, reserved=RESERVED)


def _accepted(name, function, folders):
  """Returns the folders a data set takes; refuses one it would ignore."""
  names = signatures.option_names(function)
  parameters = inspect.signature(function).parameters.values()
  if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
    names |= set(folders)
  for folder, path in folders.items():
    if path is not None and folder not in names:
      raise checks.ConfigError(
          f'config.data.{folder} must be None for {name!r}, which does not take'
          f' it; got {path!r}.')
  return {key: path for key, path in folders.items() if key in names}
