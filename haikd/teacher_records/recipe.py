"""What decides the content of records, beside the rows that they are of."""

from collections.abc import Mapping
import hashlib
from typing import Any, NamedTuple, Optional, Union

from haikd.storage import files
from haikd.teacher_records import hidden
from haikd.teacher_records import sampled
from haikd.teacher_records import top_k

VERSION = 1  # Of the records' format.
HIDDEN = 'hidden'

Codec = Union[sampled.Codec, top_k.Codec, hidden.Codec]


class Recipe(NamedTuple):
  """What decides the content of records.

  Attributes:
    options: kind and options, as `config.record_options` returns them.
    teacher: the hash of its parameters.
    vocabulary: the identity of the tokenizer; '' without one.
    classes: V.
    axes: how many axes positions have: 1 for `[B]`, 2 for `[B, N]`.
    width: D, of hidden states; None for other kinds.
    shard_rows: rows of the data set in a shard.
    version: of the format.
  """

  options: Mapping[str, Any]
  teacher: str
  vocabulary: str
  classes: int
  axes: int
  width: Optional[int]
  shard_rows: int
  version: int = VERSION

  @property
  def copies(self) -> int:
    """How many records a row has."""
    return self.options.get('copies', 1)

  @property
  def identity(self) -> str:
    """A hash of all of it."""
    text = files.encode(self._asdict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def codec(self) -> Codec:
    """Returns how its records are written."""
    return codec(self.options, self.classes, self.width)

  def differences(self, other: 'Recipe') -> dict[str, tuple[Any, Any]]:
    """Returns `{what: (of this, of the other)}` where two recipes differ."""
    flat = [{**x._asdict(), **x.options} for x in (self, other)]
    names = [name for name in {**flat[0], **flat[1]} if name != 'options']
    values = {name: (flat[0].get(name), flat[1].get(name)) for name in names}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def codec(options: Mapping[str, Any], classes: int,
          width: Optional[int] = None) -> Codec:
  """Returns how records of a kind are written.

  Args:
    options: as those of a Recipe.
    classes: V.
    width: D; needed for hidden states alone.
  """
  given = {name: value for name, value in options.items()
           if name not in ('kind', 'copies')}
  if options['kind'] == HIDDEN:
    assert width is not None, 'hidden states have a width'
    return hidden.Codec(width)
  if options['kind'] == 'top_k':
    return top_k.Codec(classes, **{**given, 'k': min(given['k'], classes)})
  exact = min(given['exact'], classes)
  return sampled.Codec(classes, **{**given, 'exact': exact})
