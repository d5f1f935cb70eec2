"""Looks for what fits: the largest microbatch, and a remedy where nothing does.

Nothing is predicted: every candidate is compiled.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional

from haikd import config as config_lib
from haikd.core import checks
from haikd.plan import chips
from haikd.plan import estimate as estimate_lib

ConfigDict = config_lib.ConfigDict

_LEAP = 64  # How many times as large a number to ask about at most.
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


def largest(size: Callable[[int], float], room: float, start: int, *,
            tries: int) -> int:
  """Returns the largest number whose size has room, given that `start` has.

  Sizes grow about linearly: a line through the last two that are known, one on
  either side of the room where there is one, says what to ask about next.

  Args:
    size: what a number takes; it grows with the number.
    room: what there is.
    start: a number that has room.
    tries: how often to ask at most, beside `start`.

  Returns:
    The largest that was found to have room.
  """
  known = {start: size(start)}
  for _ in range(tries):
    below = max(n for n, taken in known.items() if taken <= room)
    above = min((n for n in known if n > below), default=None)
    if above == below + 1:
      break
    guess = 2 * below
    if len(known) > 1:
      other = above or max(n for n in known if n < below)
      slope = (known[other] - known[below]) / (other - below)
      if slope > 0:
        guess = below + int((room - known[below]) / slope)
    guess = min(max(guess, below + 1), above - 1 if above else _LEAP * below)
    known[guess] = size(guess)
  return max(n for n, taken in known.items() if taken <= room)


def largest_microbatch(config: ConfigDict, estimate: estimate_lib.Estimate,
                       attempt: Try, *, compiles: int) -> Optional[int]:
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

  def size(microbatch):
    if microbatch == estimate.microbatch:
      return estimate.peak
    changed = _copy(config)
    changed.batch_size = microbatch * shards * config.microbatches
    return attempt(changed).peak

  return largest(
      size, estimate.available, estimate.microbatch, tries=compiles)


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
