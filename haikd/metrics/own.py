"""Metrics of a user's own: registered by name, named in the config."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import inspect
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import entries
from haikd.core import notes
from haikd.core import registry
from haikd.core import signatures
from haikd.metrics import counts
from haikd.metrics import means
from haikd.metrics import table

FIELD = 'config.evaluation.metrics'
_TAKEN = {*(score.name for score in table.SCORES), *counts.SCORES,
          'parameters', 'seconds'}
_RESERVED = ('student', 'teacher', 'mask', 'labels', 'weight')


class Own(NamedTuple):
  """A metric of the user's own.

  Attributes:
    name: its name.
    entry: what was registered.
    options: keyword arguments from the config.
  """

  name: str
  entry: entries.MetricEntry
  options: Mapping[str, Any]

  def lacks(self, **given: Any) -> bool:
    """Returns whether an argument without a default is not there."""
    parameters = inspect.signature(self.entry.function).parameters
    return any(
        value is None and name in parameters and
        parameters[name].default is inspect.Parameter.empty
        for name, value in given.items())

  def __call__(self, student: Any, teacher: Any, **keywords: Any) -> Any:
    """Calls it with the arguments that it takes; its errors name it."""
    parameters = inspect.signature(self.entry.function).parameters
    given = dict(keywords, teacher=teacher)
    keywords = {name: given[name] for name in given if name in parameters}
    with _errors_name(f'{FIELD}.{self.name}'):
      return self.entry.function(student, **keywords, **self.options)


def register_metric(name: Optional[str] = None,
                    *,
                    whole_split: bool = False,
                    less_is_better: bool = False,
                    replace: bool = False) -> Callable[[Callable], Callable]:
  """Registers a metric: `(student, teacher, *, mask, labels, **options)`.

  A config reports it with `config.evaluation.metrics.<name> = {}`, or a dict of
  its options. It is left out where an argument without a default is missing:
  `teacher` where there is none, `labels` where the data has none.

  A metric is a masked mean unless it says otherwise: it gets the outputs of a
  batch, float32 `[B, V]`, `[B, N, V]` or vectors `[B, D]`, with `mask` as a
  loss does, and returns a `haikd.LossSum`, additive over `B`; totals and counts
  are added up over batches and devices. Logits of a large vocabulary come in
  chunks of positions, `[R, V]`.

  Args:
    name: its name in configs and results; the function's name by default.
    whole_split: whether it gets NumPy arrays of all examples of the split at
      once and returns a number. All outputs are then kept in memory. If it
      takes `weight`, it gets those of the examples, `[size]`, or None.
    less_is_better: whether the smaller of two values is the better one, for
      `config.evaluation.keep_best`.
    replace: whether to replace a metric of that name.

  Returns:
    A decorator that returns the function unchanged. It raises ConfigError if
    the name is taken, or `student` or `mask` is not taken.
  """

  def decorate(function):
    metric_name = name or function.__name__
    parameters = inspect.signature(function).parameters
    if next(iter(parameters), None) != 'student' or 'mask' not in parameters:
      raise checks.ConfigError(
          'a metric must take student first, and the keyword mask; got '
          f'{function.__name__}{inspect.signature(function)} of '
          f'{function.__module__}. Write `def {function.__name__}(student, *, '
          'mask, labels, …):`.')
    if metric_name in _TAKEN:
      raise checks.ConfigError(
          f'name of a metric must be new; got {metric_name!r}, which haikd has '
          'already. Choose another.')
    entry = entries.MetricEntry(
        function, whole_split, less_is_better, function.__module__)
    registry.metrics.add(metric_name, entry, replace=replace)
    return function

  return decorate


def build(config: Mapping[str, Any]) -> tuple[Own, ...]:
  """Returns the metrics of `config.evaluation.metrics`.

  Args:
    config: `{name: options}`.

  Raises:
    ConfigError: an unknown metric, or an option that it does not take.
  """
  result = []
  for name, options in config.items():
    entry = registry.metrics.find(name, f'{FIELD}.{name}')
    options = config_lib.plain(options)
    signatures.check_options(
        f'{FIELD}.{name}', entry.function, options, reserved=_RESERVED)
    result.append(Own(name, entry, options))
  return tuple(result)


def add_up(metrics: Sequence[Own], output: jax.Array,
           target: Optional[jax.Array], *, mask: jax.Array,
           labels: Optional[jax.Array]) -> dict[str, base.LossSum]:
  """Returns the LossSums of those that are masked means."""
  sums = {}
  for metric in metrics:
    if metric.entry.whole_split or metric.lacks(teacher=target, labels=labels):
      continue
    value = metric(output, target, mask=mask, labels=labels)
    if not isinstance(value, base.LossSum):
      raise checks.ConfigError(
          f'{FIELD}.{metric.name} must return a haikd.LossSum; got '
          f'{type(value).__name__}. End it with `return haikd.masked_mean('
          'values, mask)`, or register it with whole_split=True.')
    if any(jnp.shape(x) for x in value):
      raise checks.ConfigError(
          f'{FIELD}.{metric.name} must return two scalars; got total of shape '
          f'{jnp.shape(value.total)}, count of shape {jnp.shape(value.count)}.')
    sums[metric.name] = base.LossSum(
        *(jnp.asarray(x, jnp.float32) for x in value))
  return sums


def columns_of(metrics: Sequence[Own], output: Any, target: Any, *,
               mask: jax.Array, labels: Optional[jax.Array],
               weight: Optional[jax.Array]) -> dict[str, Any]:
  """Returns what those of the whole split need to keep of a batch."""
  whole = [metric for metric in metrics if metric.entry.whole_split]
  if not whole:
    return {}
  if isinstance(output, base.LinearLogits):
    raise checks.ConfigError(
        f'{FIELD}.{whole[0].name} must not be of the whole split for a '
        'language model, whose logits are too many to keep. Register it as a '
        'masked mean, without whole_split.')
  for metric in whole:
    takes = inspect.signature(metric.entry.function).parameters
    if weight is not None and 'weight' not in takes:
      notes.say(f'{FIELD}.{metric.name} does not weigh examples, though the '
                'data has weights; let it take `weight`.')
  values = dict(student=output, teacher=target, mask=mask, labels=labels,
                weight=weight)
  return {name: x for name, x in values.items() if x is not None}


def finish(metrics: Sequence[Own], sums: Mapping[str, base.LossSum],
           columns: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Returns the values over a split; NaN where nothing counts.

  Args:
    metrics: all of them.
    sums: from `add_up`, added up.
    columns: from `columns_of`, the rows of all batches.
  """
  values = means.finish(sums)
  if columns:
    mask = columns['mask']
    real = mask.reshape(len(mask), -1).any(axis=1)  # Not of the last batch.
    given: dict[str, Any] = dict.fromkeys(
        ('student', 'teacher', 'labels', 'weight'))
    given.update((name, x[real]) for name, x in columns.items())
    for metric in metrics:
      needed = dict(teacher=given['teacher'], labels=given['labels'])
      if metric.entry.whole_split and not metric.lacks(**needed):
        with _errors_name(f'{FIELD}.{metric.name}'):
          values[metric.name] = float(metric(**given))
  return values


def names_of_whole(metrics: Sequence[Own],
                   columns: Mapping[str, Any]) -> list[str]:
  """Returns those of the whole split that `finish` has with some columns."""
  return [metric.name for metric in metrics if metric.entry.whole_split and
          not metric.lacks(teacher=columns.get('teacher'),
                           labels=columns.get('labels'))]


@contextlib.contextmanager
def _errors_name(field):
  """Makes every error name the config field that it comes from."""
  try:
    yield
  except checks.ConfigError:
    raise
  except Exception as err:  # A metric is user code and may raise anything.
    raise checks.ConfigError(
        f'{field} must be computable; got {checks.describe(err)}. Fix the '
        'metric; --debug shows the traceback.') from err
