"""Tasks: what a network predicts, and what the labels of data are.

A model declares one task and a data set the tasks that its targets fit, where
they are registered:

  causal_lm: logits of the next token, for each position.
  masked_lm: logits of the token itself, for positions where it is hidden.
  classification: logits of the classes, for each example; it predicts several
    labels (multilabel) and numbers (regression) as well.
  embedding: a vector for each text.

Whoever declares nothing is free to be combined with anything.

`config.task` says what labels are, which decides the standard terms and the
metrics:

  classification: one class for each example.
  dense: one class for each place of an image.
  tagging: one class for each position of a sequence.
  multilabel: for each class whether it is true; several may be.
  regression: numbers.
"""

from collections.abc import Collection, Mapping
from typing import Any, Optional

from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.core import signatures

AUTO = 'auto'  # What the labels themselves say.
CLASSIFICATION, DENSE, TAGGING, MULTILABEL, REGRESSION = OF_LABELS = (
    'classification', 'dense', 'tagging', 'multilabel', 'regression')
OF_POSITIONS = ('causal_lm', 'masked_lm')  # Their logits have positions.
# What labels a task serves, if not those of its own name alone.
_SERVED = {CLASSIFICATION: (CLASSIFICATION, MULTILABEL, REGRESSION)}
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


def fits(task: str, targets: Collection[str]) -> bool:
  """Returns whether a model of a task predicts one of the targets of data."""
  return not set(_SERVED.get(task, (task,))).isdisjoint(targets)


def of_labels(task: str, labels: Optional[base.AnyArray],
              num_classes: Optional[int]) -> str:
  """Returns what labels are, as far as their dtype tells.

  Args:
    task: `config.task`; a name other than 'auto' is returned.
    labels: of a batch, or None.
    num_classes: of the data; None if it has none.
  """
  if task != AUTO:
    return task
  are_numbers = (
      labels is not None and checks.is_real(labels) and num_classes is None)
  return REGRESSION if are_numbers else CLASSIFICATION


def count_outputs(task: Optional[str], labels: Optional[base.AnyArray],
                  num_classes: Optional[int]) -> Optional[int]:
  """Returns how many outputs a network needs, its `num_classes`.

  Args:
    task: what labels are, one of `OF_LABELS`; None without labels.
    labels: of a batch, or None.
    num_classes: of the data; None if it has none.

  Returns:
    The number of classes, or of numbers to predict for an example; None if it
    is not known, as where positions have numbers.
  """
  if task != REGRESSION or labels is None:
    return num_classes
  return {1: 1, 2: labels.shape[-1]}.get(len(labels.shape))


def data_for(task: str) -> list[str]:
  """Returns the names of data sets that always have targets for a task."""
  entries = {name: registry.datasets[name].tasks
             for name in registry.datasets.names()}
  return [name for name, tasks in entries.items()
          if tasks and not callable(tasks) and fits(task, tasks)]


def _declared(declaration: Any, options: Mapping[str, Any]) -> Any:
  """Returns a declaration; a function gets the options that it names."""
  if not callable(declaration):
    return declaration
  names = signatures.option_names(declaration)
  return declaration(
      **{name: value for name, value in options.items() if name in names})
