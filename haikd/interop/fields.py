"""The fields of another library's config, each of which must be accounted for.

A field that is not understood may change what the network computes, and
half-loaded weights give a teacher that is wrong and looks right. So a family
takes the fields it knows, one by one, and the others are refused by name.
"""

from collections.abc import Iterable, Mapping
import numbers
from typing import Any, Optional

from haikd.core import checks
from haikd.storage import files
from haikd.storage import paths

# Fields of training, generation and bookkeeping: no logit depends on them.
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

# {kind of a field: (what its value must be, whether a value is that)}
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
  """A config whose every field must be taken, ignored or off.

  Attributes:
    path: the file that holds the config.

  Args:
    path: likewise, for messages.
    values: the fields.
    prefix: what precedes their names in the file, such as 'rope_scaling.'.
  """

  def __init__(self, path: str, values: Mapping[str, Any], prefix: str = ''):
    self.path = path
    self._values = dict(values)
    self._prefix = prefix
    self._left = set(values) - _IGNORED

  def title(self, name: str) -> str:
    """Returns what messages call a field: its file and its full name."""
    return f'{self.path}: {self._prefix}{name}'

  def take(self, name: str, default: Any = _MISSING, *,
           kind: Optional[type] = None, null: bool = False) -> Any:
    """Returns the value of a field.

    Args:
      name: of the field.
      default: the value of a missing field. Without it the field is required.
      kind: int (a size, hence above 0), float (another number above 0), bool,
        str, list or dict; None for anything.
      null: whether a field of some kind may also be null, which it may in any
        case if null is the default.

    Raises:
      DataError: the field is required and missing, or is of another kind.
    """
    self._left.discard(name)
    value = self._values.get(name, default)
    if value is _MISSING:
      raise checks.DataError(
          f'{self.title(name)} is missing; got the fields '
          f'{sorted(self._values)}. Fetch the model again.')
    if kind is None or value is None and (null or default is None):
      return value
    rule, is_legal = _KINDS[kind]
    if not is_legal(value):
      raise checks.DataError(
          f'{self.title(name)} must be {rule}; got {value!r}. Fetch the model '
          'again.')
    return value

  def expect(self, name: str, *values: Any) -> None:
    """Takes a field that must be missing, null or one of the values.

    Raises:
      DataError: it is something else, which is not supported.
    """
    self._left.discard(name)
    value = self._values.get(name)
    if value is not None and value not in values:
      raise checks.DataError(
          f'{self.title(name)} must be {" or ".join(map(repr, values))}; got '
          f'{value!r}, which haikd does not support.')

  def ignore(self, names: Iterable[str]) -> None:
    """Skips fields that no output in inference mode depends on."""
    self._left -= set(names)

  def done(self) -> None:
    """Raises DataError if a field is left that may switch something on."""
    # None, False, 0 and what is empty switch nothing on.
    unknown = {self._prefix + name: self._values[name]
               for name in sorted(self._left)
               if self._values[name] not in (None, False, 0, {}, [])}
    if unknown:
      raise checks.DataError(
          f'{self.path}: all fields must be known to haikd; got {unknown}. '
          'Nothing was loaded, since each may change what the network '
          'computes.')


def read_object(path: paths.Path) -> dict[str, Any]:
  """Returns the content of a JSON file that holds an object.

  Args:
    path: the file.

  Raises:
    DataError: it cannot be read, or holds something else.
  """
  content = files.read_json(path)
  if not isinstance(content, dict):
    raise checks.DataError(
        f'{path} must hold a JSON object; got {type(content).__name__}. Fetch '
        'the model again.')
  return content


def _is_above_0(value):
  return checks.is_number(value) and value > 0
