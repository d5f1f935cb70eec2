"""What the families share about options: defaults, activations and labels."""

from collections.abc import Iterable, Mapping, Sequence
import inspect
from typing import Any, Optional, Union

from haikd.core import checks
from haikd.core import registry
from haikd.interop import fields as fields_lib

# {name in transformers: name in haikd's models}. Where several names mean one
# function, the last one is the name that is written.
_ACTIVATIONS = dict(
    gelu_fast='gelu_tanh',
    gelu_new='gelu_tanh',
    gelu_pytorch_tanh='gelu_tanh',
    gelu='gelu',
    relu='relu',
    swish='silu',
    silu='silu',
    tanh='tanh')


def complete(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns options, with the model's defaults for those that are missing.

  Args:
    model: a registered model.
    options: some of its options.
  """
  parameters = inspect.signature(registry.models[model].function).parameters
  defaults = {name: parameter.default for name, parameter in parameters.items()
              if parameter.default is not inspect.Parameter.empty}
  return {**defaults, **options}


def read_architecture(fields: fields_lib.Fields, known: Iterable[str]) -> str:
  """Takes the architecture; a config without one has the first known one.

  Args:
    fields: of `config.json`.
    known: the architectures that are supported.

  Raises:
    DataError: another architecture, or several.
  """
  known = tuple(known)
  names = fields.take('architectures', None, kind=list) or known[:1]
  if len(names) != 1 or names[0] not in known:
    raise checks.DataError(
        f'{fields.title("architectures")} must be one of {", ".join(known)}; '
        f'got {checks.shorten(str(names))}, which haikd does not support.')
  return names[0]


def read_activation(fields: fields_lib.Fields, name: str) -> str:
  """Takes the field of an activation and returns its name in haikd's models.

  Args:
    fields: of `config.json`.
    name: of the field.

  Raises:
    DataError: an activation that is not known.
  """
  value = fields.take(name, kind=str)
  fields.expect(name, *_ACTIVATIONS)
  return _ACTIVATIONS[value]


def write_activation(name: str) -> str:
  """Returns the name that transformers has for an activation of the models.

  Args:
    name: the option `activation`.

  Raises:
    ConfigError: transformers has no such activation.
  """
  names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
  check_choice('activation', name, names)
  return names[name]


def check_choice(name: str, value: Any, legal: Iterable[Any]) -> None:
  """Raises ConfigError unless an option has a value that can be exported.

  Args:
    name: of the option.
    value: its value.
    legal: the values that can be exported.
  """
  legal = tuple(legal)
  if value not in legal:
    raise checks.ConfigError(
        f'options.{name} must be {" or ".join(map(repr, legal))}; got '
        f'{value!r}, which no network of this kind has in transformers.')


def read_labels(fields: fields_lib.Fields) -> int:
  """Takes the names of the classes and returns the number of classes."""
  labels = fields.take('id2label', None, kind=dict)
  # Without either field transformers has two classes.
  count = fields.take('num_labels', None, kind=int)
  return len(labels) if labels else count or 2


def read_names(fields: fields_lib.Fields) -> Optional[tuple[str, ...]]:
  """Takes the names of the classes and returns them in the order of their ids.

  Returns:
    The names, some of which may be equal. None if a config has no names, or
    only placeholders made from the ids.
  """
  labels = fields.take('id2label', None, kind=dict) or {}
  by_id = {int(number): str(name) for number, name in labels.items()}
  if not by_id or sorted(by_id) != list(range(len(labels))):
    return None
  names = [by_id[i] for i in range(len(by_id))]
  return None if names == _placeholders(len(names)) else tuple(names)


def write_labels(names: Union[int, Sequence[str]]) -> dict[str, Any]:
  """Returns the fields that name the classes.

  Args:
    names: of the classes; a number of classes for placeholders.
  """
  labels = _placeholders(names) if isinstance(names, int) else names
  return dict(
      id2label={str(i): name for i, name in enumerate(labels)},
      label2id={name: i for i, name in enumerate(labels)})


def _placeholders(count):
  return [f'LABEL_{i}' for i in range(count)]
