"""Tasks: what a network predicts, and what the targets of data are for.

A model declares one task and a data set the tasks that its targets fit, where
they are registered:

  causal_lm: logits of the next token, for each position.
  masked_lm: logits of the token itself, for positions where it is hidden.
  classification: logits of the classes, for each example.
  embedding: a vector for each text.

Whoever declares nothing is free to be combined with anything.
"""

from collections.abc import Mapping
from typing import Any, Optional

from haikd.core import checks
from haikd.core import registry

OF_POSITIONS = ('causal_lm', 'masked_lm')  # Their logits have positions.
OF_TEXTS = ('classification', 'embedding')  # Independent of the tokenization.


def of_model(name: str, options: Mapping[str, Any]) -> Optional[str]:
  """Returns the task of a model.

  Args:
    name: its name in a config; an unknown one has no task.
    options: its options.

  Returns:
    The task, or None if it declares none.
  """
  if name not in registry.models.names():
    return None
  return _declared(registry.models[name].task, options)


def of_data(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the tasks that the targets of a data set fit.

  Args:
    name: its name in a config; one that is not registered declares no task.
    options: its options.

  Returns:
    The tasks; empty if it declares none.
  """
  if name not in registry.datasets.names():
    return ()
  return tuple(_declared(registry.datasets[name].tasks, options) or ())


def data_for(task: str) -> list[str]:
  """Returns the names of data sets that always have targets for a task."""
  entries = {name: registry.datasets[name].tasks
             for name in registry.datasets.names()}
  return [name for name, tasks in entries.items()
          if tasks and not callable(tasks) and task in tasks]


def _declared(declaration: Any, options: Mapping[str, Any]) -> Any:
  """Returns a declaration; a function gets the options that it names."""
  if not callable(declaration):
    return declaration
  names = checks.option_names(declaration)
  return declaration(
      **{name: value for name, value in options.items() if name in names})
