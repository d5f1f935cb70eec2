"""The config fields on what watches a run, and on what it shows."""

from typing import TypeAlias

from ml_collections import config_dict

from haikd.config import networks
from haikd.core import checks

ConfigDict: TypeAlias = networks.ConfigDict

PROFILED = 10, 15  # The steps that --profile traces.


def guard() -> ConfigDict:
  """Returns the fields on numbers that are not finite, and on hangs."""
  return ConfigDict(
      dict(
          # What a step does whose loss or gradient is not finite: stop ends the
          # run, skip drops its update, and rollback returns to the newest
          # checkpoint and goes on with the batches after that of the step.
          nonfinite='stop',
          # Norm of the gradient, before clipping, above which a step is treated
          # likewise; None for none.
          max_grad_norm=config_dict.placeholder(float),
          # How often one training may skip or roll back before it ends.
          limit=10,
          # Seconds after which a run ends that does not get on: that waits for
          # a batch, a step, a batch of an evaluation, or a save. Preparing data
          # has no limit.
          hang_after=3600.0,
      ))


def report() -> ConfigDict:
  """Returns the fields of the page that a run ends with."""
  return ConfigDict(
      dict(
          # Whether it is written.
          write=True,
          # Examples of the final split that it compares; 0 for curves alone.
          examples=2000,
      ))


def profile() -> ConfigDict:
  """Returns the fields of a trace of some steps."""
  return ConfigDict(
      dict(
          # The first and the last step to trace, such as (10, 15); () for none.
          # The first steps, which compile and warm up, tell little.
          steps=(),
      ))


def check(config: ConfigDict) -> None:
  """Refuses steps to trace that are not among those of training.

  Args:
    config: with fields of the right types.

  Raises:
    ConfigError: `config.profile.steps` cannot be traced.
  """
  steps = config.profile.steps
  is_legal = not steps or len(steps) == 2 and all(
      type(x) is int for x in steps) and 1 <= steps[0] <= steps[1]
  if not is_legal:
    raise checks.ConfigError(
        'config.profile.steps must be the first and the last step to trace, '
        f'from 1, or (); got {checks.show(steps)}. Write (10, 15) for six '
        'steps.')
  if steps and steps[1] > config.steps:
    raise checks.ConfigError(
        f'config.profile.steps must lie within the {config.steps} steps of '
        f'config.steps; got {checks.show(steps)}. Choose earlier ones.')


def profiled(config: ConfigDict) -> tuple[int, int]:
  """Returns the steps that --profile traces where the config names none.

  Args:
    config: of the run.
  """
  first, last = PROFILED
  return min(first, config.steps), min(last, config.steps)
