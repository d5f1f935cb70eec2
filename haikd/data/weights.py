"""The weights of the data sets of a mixture, over the stages of a run."""

from haikd import config as config_lib
from haikd.core import schedules
from haikd.data import orders


def build(config: config_lib.ConfigDict) -> orders.Weights:
  """Returns the weight of each data set at each step, by their names in order.

  Args:
    config: of the run, with a mixture.

  Raises:
    ConfigError: a weight that is no number and no schedule.
  """
  stages = config_lib.stages_of(config)
  # A saved config may have another order.
  return {name: _weight(name, stages) for name in sorted(config.data.mixture)}


def _weight(name, stages):
  found = tuple(
      schedules.build(
          f'config.data.mixture.{name}.weight',
          config_lib.component(stage.config.data.mixture[name]).weight)
      for stage in stages)
  if len(set(found)) == 1:
    return found[0]
  return schedules.Staged(found, tuple(stage.start for stage in stages[1:]))
