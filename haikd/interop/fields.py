"""The fields of another library's config, each of which must be accounted for.

What is not understood changes what a network computes, and half-loaded weights
give a teacher that is wrong and looks right. So a family takes the fields it
knows, one by one, and the rest is refused by name.
"""

from collections.abc import Iterable, Mapping
import numbers
from typing import Any, Optional

from haikd.core import checks

# Of training, generation and bookkeeping: no logit depends on them.
_IGNORED = frozenset((
    '_attn_implementation', '_name_or_path', 'architectures',
    'attn_implementation', 'auto_map', 'bos_token_id',
    'chunk_size_feed_forward', 'cls_token_id', 'decoder_start_token_id',
    'dtype', 'eos_token_id', 'finetuning_task', 'gradient_checkpointing',
    'id2label', 'initializer_range', 'is_decoder',
    'keys_to_ignore_at_inference', 'label2id', 'mask_token_id', 'model_type',
    'output_attentions', 'output_hidden_states', 'output_past', 'pad_token_id',
    'prefix', 'pretraining_tp', 'problem_type', 'return_dict', 'sep_token_id',
    'task_specific_params', 'tokenizer_class', 'torch_dtype', 'torchscript',
    'transformers.js_config', 'transformers_version', 'unk_token_id',
    'use_bfloat16', 'use_cache'))

_MISSING = object()

# What a field of a kind has to be, in words and as a test.
_KINDS = {
    int: ('a whole number above 0',
          lambda x: _is_above_0(x) and isinstance(x, numbers.Integral)),
    float: ('a number above 0', lambda x: _is_above_0(x)),
    bool: ('true or false', lambda x: isinstance(x, bool)),
    str: ('a string', lambda x: isinstance(x, str)),
    list: ('a list', lambda x: isinstance(x, list)),
    dict: ('an object', lambda x: isinstance(x, Mapping)),
}


class Fields:
  """A config of which every field has to be taken, ignored or at rest.

  Args:
    path: where it was read, for messages.
    values: the fields.
  """

  def __init__(self, path: str, values: Mapping[str, Any]):
    self.path = path
    self._values = dict(values)
    self._left = set(values) - _IGNORED

  def take(self, name: str, default: Any = _MISSING, *,
           kind: Optional[type] = None, null: bool = False) -> Any:
    """Returns a field; without a default it must be there.

    Args:
      name: of the field.
      default: what it is where it is missing.
      kind: int, which stands for sizes and hence for numbers above 0, float for
        others above 0, bool, str, list or dict; None for anything.
      null: whether a field of a kind may also be null, as it may be if that is
        its default.

    Raises:
      DataError: it is missing, or of another kind.
    """
    self._left.discard(name)
    value = self._values.get(name, default)
    if value is _MISSING:
      raise checks.DataError(
          f'interop.read: {self.path} must have the field {name!r}; got '
          f'{sorted(self._values)}. Fetch the model again.')
    if kind is None or value is None and (null or default is None):
      return value
    rule, is_legal = _KINDS[kind]
    if not is_legal(value):
      raise checks.DataError(
          f'interop.read: {name} of {self.path} must be {rule}; got '
          f'{name}={value!r}. Fetch the model again.')
    return value

  def expect(self, name: str, *values: Any) -> None:
    """Takes a field that may be absent, None or one of the values.

    Raises:
      DataError: it is something else, which is not supported.
    """
    self._left.discard(name)
    value = self._values.get(name)
    if value is not None and value not in values:
      raise checks.DataError(
          f'interop.read: {name} of {self.path} must be '
          f'{" or ".join(map(repr, values))}; got {name}={value!r}, which is '
          'not supported.')

  def ignore(self, names: Iterable[str]) -> None:
    """Passes over fields that no output at rest depends on."""
    self._left -= set(names)

  def done(self) -> None:
    """Raises DataError if a field is left that says something."""
    # None, False and 0 switch nothing on.
    unknown = {name: self._values[name] for name in sorted(self._left)
               if self._values[name] not in (None, False, 0, {}, [])}
    if unknown:
      raise checks.DataError(
          f'interop.read: {self.path} must have known fields only; got '
          f'{unknown}, not supported. Nothing was loaded.')


def _is_above_0(value):
  return checks.is_number(value) and value > 0
