"""Looks for what fits: the largest microbatch, and a remedy where nothing does.

Nothing is predicted: every candidate is compiled.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional

from haikd import checks
from haikd import config as config_lib
from haikd.plan import chips
from haikd.plan import estimate as estimate_lib

ConfigDict = config_lib.ConfigDict
Try = Callable[[ConfigDict], estimate_lib.Estimate]


class Remedy(NamedTuple):
  """A change of the config that was compiled.

  Attributes:
    flags: the change, as flags of the command line.
    estimate: what came of it.
  """

  flags: str
  estimate: estimate_lib.Estimate


def fits(estimate: estimate_lib.Estimate) -> bool:
  """Returns whether a step fits; it does where no memory is known."""
  margin = estimate.margin()
  return margin is None or margin >= 0


def largest(holds: Callable[[int], bool], start: int, *,
            compiles: int) -> int:
  """Returns the largest number that holds, given that `start` does.

  It is doubled as long as it holds, then halved into the gap.

  Args:
    holds: whether a number does; if one does, so do all below.
    start: one that does.
    compiles: how often to ask at most.

  Returns:
    The largest that was asked about, or `start`.
  """
  below, above = start, None
  for _ in range(compiles):
    if above is None:
      asked = 2 * below
    elif above - below > 1:
      asked = (below + above) // 2
    else:
      break
    if holds(asked):
      below = asked
    else:
      above = asked
  return below


def largest_microbatch(config: ConfigDict, estimate: estimate_lib.Estimate,
                       attempt: Try, *, compiles: int = 6) -> Optional[int]:
  """Looks for the largest microbatch that fits, by compiling others.

  Args:
    config: of a step that fits.
    estimate: of it.
    attempt: compiles the step of another config.
    compiles: at most so many.

  Returns:
    Examples that a device can work on at once, as far as was looked; None if no
    limit is known.
  """
  if estimate.available is None:
    return None
  shards = estimate.batch_size // (estimate.microbatch * config.microbatches)

  def holds(microbatch):
    changed = _copy(config)
    changed.batch_size = microbatch * shards * config.microbatches
    return fits(attempt(changed))

  return largest(holds, estimate.microbatch, compiles=compiles)


def remedies(config: ConfigDict, estimate: estimate_lib.Estimate,
             attempt: Try) -> list[Remedy]:
  """Compiles what could help, one change at a time, the best first.

  Args:
    config: of a step that does not fit.
    estimate: of it.
    attempt: compiles the step of another config.

  Returns:
    What was compiled; changes that the config does not allow are left out.
  """
  found = []
  for flags, changed in _changes(config, estimate):
    try:
      found.append(Remedy(flags, attempt(changed)))
    except checks.ConfigError:
      continue
  return sorted(found, key=lambda remedy: remedy.estimate.peak)


def _changes(config, estimate) -> Iterator[tuple[str, ConfigDict]]:
  """Yields what is worth a try, as flags and as a config."""
  if estimate.mesh.get('replica', 1) > 1:
    yield _changed(config, {'mesh.replica': 1, 'mesh.fsdp': -1})
  if estimate.microbatch > 1:
    # One example at a time shows all there is to be had from microbatches.
    yield _changed(
        config, {'microbatches': config.microbatches * estimate.microbatch})
  if config.student.remat != 'full':
    yield _changed(config, {'student.remat': 'full'})
  for network in ('student', 'teacher'):
    if config[network].precision == 'float32':
      yield _changed(config, {f'{network}.precision': 'bfloat16'})


def _changed(config, values):
  changed = _copy(config)
  changed.update_from_flattened_dict(values)
  flags = ' '.join(f'--config.{name}={value}' for name, value in values.items())
  return flags, changed


def _copy(config):
  return config_lib.ConfigDict(config).copy_and_resolve_references()


def does_not_fit(estimate: estimate_lib.Estimate,
                 tried: list[Remedy]) -> checks.DoesNotFitError:
  """Returns the error that says by how much, and what helps most.

  Args:
    estimate: of the step that does not fit.
    tried: what `remedies` returned.

  Returns:
    The error, to be raised.
  """
  if tried:
    best = tried[0]
    left = best.estimate.margin()
    result = (f'fits with {_gib(left)} left' if left >= 0 else
              f'helps most, and still misses {_gib(-left)}')
    remedy = f'{best.flags} {result}.'
    if left < 0:
      remedy += ' Add chips, or several of: ' + ', '.join(
          x.flags for x in tried[1:]) + '.' if tried[1:] else ' Add chips.'
  else:
    remedy = 'Add chips.'
  return checks.DoesNotFitError(
      f'plan.plan: the step must fit in the memory of a chip; got '
      f'{estimate.topology}: {_gib(estimate.peak)} needed, '
      f'{_gib(estimate.available)} there, {_gib(-estimate.margin())} missing. '
      f'{remedy}')


def _gib(size):
  return f'{size / chips.GIB:.2f} GiB'
