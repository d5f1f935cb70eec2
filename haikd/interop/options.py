"""What the families share about options: defaults, activations and labels."""

from collections.abc import Iterable, Mapping, Sequence
import inspect
from typing import Any, Optional, Union

from haikd.core import checks
from haikd.core import registry
from haikd.interop import fields as fields_lib

# A name of theirs for each of ours comes last, and is the one that is written.
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
  """Returns options with the defaults of those that are not there.

  Args:
    model: a registered model.
    options: some of its options.
  """
  parameters = inspect.signature(registry.models[model].function).parameters
  defaults = {name: parameter.default for name, parameter in parameters.items()
              if parameter.default is not inspect.Parameter.empty}
  return {**defaults, **options}


def read_architecture(fields: fields_lib.Fields, known: Iterable[str]) -> str:
  """Takes the architecture, which is the first of those known if none is said.

  Raises:
    DataError: another one, or several.
  """
  known = tuple(known)
  found = fields.take('architectures', None, kind=list) or known[:1]
  if len(found) != 1 or found[0] not in known:
    raise checks.DataError(
        f'interop.read: architectures of {fields.path} must be one of '
        f'{", ".join(known)}; got {found}, not supported.')
  return found[0]


def read_activation(fields: fields_lib.Fields, name: str) -> str:
  """Takes the field of an activation and returns what the models call it.

  Raises:
    DataError: one that is not known.
  """
  value = fields.take(name, kind=str)
  fields.expect(name, *_ACTIVATIONS)
  return _ACTIVATIONS[value]


def write_activation(where: str, name: str) -> str:
  """Returns what others call an activation of the models.

  Raises:
    ConfigError: they have none like it.
  """
  theirs = {ours: other for other, ours in _ACTIVATIONS.items()}
  check_choice(where, 'activation', name, theirs)
  return theirs[name]


def check_choice(where: str, name: str, value: Any,
                 legal: Iterable[Any]) -> None:
  """Raises ConfigError unless an option has a value that can be exported."""
  legal = tuple(legal)
  if value not in legal:
    raise checks.ConfigError(
        f'{where}: {name} must be {" or ".join(map(repr, legal))}; got '
        f'{name}={value!r}, which no network of this kind there can have.')


def read_labels(fields: fields_lib.Fields) -> int:
  """Takes the names of the classes and returns how many there are."""
  labels = fields.take('id2label', None, kind=dict)
  # What is not written there has its default, two.
  count = fields.take('num_labels', None, kind=int)
  return len(labels) if labels else count or 2


def read_names(fields: fields_lib.Fields) -> Optional[tuple[str, ...]]:
  """Takes the names of the classes and returns them in the order of their ids.

  Returns:
    The names, some of which may be the same; None where a config has none, or
    only numbers.
  """
  labels = fields.take('id2label', None, kind=dict) or {}
  names = {int(number): str(name) for number, name in labels.items()}
  if not names or sorted(names) != list(range(len(labels))):
    return None
  found = [names[i] for i in range(len(names))]
  return None if found == _placeholders(len(found)) else tuple(found)


def write_labels(names: Union[int, Sequence[str]]) -> dict[str, Any]:
  """Returns the fields that name classes; so many by their numbers."""
  labels = _placeholders(names) if isinstance(names, int) else names
  return dict(
      id2label={str(i): name for i, name in enumerate(labels)},
      label2id={name: i for i, name in enumerate(labels)})


def _placeholders(count):
  return [f'LABEL_{i}' for i in range(count)]
