"""The token ids in the files of a model, which pruning a vocabulary changes."""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any, Optional

from haikd.core import notes

# Fields that hold one id, a list of ids or a list of lists.
_HOLDS_IDS = re.compile(
    r'\w+_token_ids?|(begin_)?suppress_tokens|(bad|force)_words_ids')
# Fields that hold ids among other things.
_MIXED = ('forced_decoder_ids', 'sequence_bias', 'lang_to_id', 'task_to_id')

_EOS = 'eos_token_id'


class Renumbering:
  """The ids of tokens in a vocabulary, by those before it was pruned.

  Args:
    kept_ids: `[V]` integers, for each id the one before; None if all stay.
  """

  def __init__(self, kept_ids: Optional[Iterable[int]]):
    self._new = kept_ids if kept_ids is None else {
        int(old): new for new, old in enumerate(kept_ids)}

  def fields(self, title: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config with their ids renumbered.

    Tokens that are gone are left out, and so are fields that hold ids among
    other things; what is left out is said.

    Args:
      title: of the file, for messages.
      values: the fields.
    """
    if self._new is None:
      return dict(values)
    renumbered, gone = {}, []
    for name, value in values.items():
      if name in _MIXED and value:
        gone.append(name)
        continue
      new = self._ids(value) if _HOLDS_IDS.fullmatch(name) else value
      if _count(new) < _count(value):
        gone.append(name)
      renumbered[name] = new
    if gone:
      notes.say(f'{title}: {", ".join(gone)} named tokens that pruning '
                'removed; these ids are left out.')
    return renumbered

  def tokens(self, ids_by_token: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{token: id}` renumbered, without tokens that are gone."""
    new = self._new
    return {token: i if new is None else new[i]
            for token, i in ids_by_token.items() if new is None or i in new}

  def keys(self, by_id: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{id: anything}` renumbered, without tokens that are gone."""
    new = self._new
    if new is None:
      return dict(by_id)
    return {str(new[int(i)]): value for i, value in by_id.items()
            if int(i) in new}

  def _ids(self, value):
    if isinstance(value, Sequence) and not isinstance(value, str):
      kept = [self._ids(entry) for entry in value]
      return [entry for entry in kept if entry not in (None, [])]
    # A negative id stands for no token.
    is_id = isinstance(value, int) and not isinstance(value, bool)
    return self._new.get(value) if is_id and value >= 0 else value


def with_ends(title: str, values: Mapping[str, Any],
              ends: Sequence[int]) -> dict[str, Any]:
  """Returns the fields of a config with further ids in `eos_token_id`.

  If there are some already, what is added is said.

  Args:
    title: of the file, for messages.
    values: the fields.
    ends: the ids of the tokens that end the texts of the data.
  """
  stated = values.get(_EOS)
  ids = list(stated) if isinstance(stated, Sequence) else [
      i for i in (stated,) if i is not None]
  added = [i for i in ends if i not in ids]
  if not added:
    return dict(values)
  if ids:
    notes.say(f'{title}: texts of the data end with id '
              f'{" or ".join(map(str, added))}, which is added to {_EOS}, '
              f'{stated}. config.data.options.eos chooses the token.')
  ids += added
  return {**values, _EOS: ids if len(ids) > 1 else ids[0]}


def _count(value) -> int:
  """Returns the number of ids in a value."""
  if isinstance(value, list):
    return sum(map(_count, value))
  return value is not None
