"""Finds the largest microbatch that fits, or a remedy if the step does not fit.

Every candidate is compiled: what is predicted is only which to compile next.
"""

from collections.abc import Callable, Iterator
import math
from typing import NamedTuple, Optional

from haikd import config as config_lib
from haikd.core import checks
from haikd.engine import peaks
from haikd.plan import estimate as estimate_lib

# Nothing beyond so many times what was asked for is tried.
_MAX_GROWTH = 64
# Nor is what would be larger by less than this share.
_WORTH = 0.05

Try = Callable[[config_lib.ConfigDict], estimate_lib.Estimate]


class Remedy(NamedTuple):
  """A change of the config that was compiled.

  Attributes:
    flags: the change, as flags of the command line.
    estimate: what came of it.
  """

  flags: str
  estimate: estimate_lib.Estimate


def fits(estimate: estimate_lib.Estimate) -> bool:
  """Returns whether a step fits; it does if the memory is not known."""
  margin = estimate.margin()
  return margin is None or margin >= 0


def largest(size: Callable[[int], float], room: float, start: int, *,
            tries: int, fixed: float = 0.0, worth: float = 0.0) -> int:
  """Returns the largest number whose size has room, given that `start` has.

  Sizes grow about linearly. The next guess is therefore on a line through the
  last two known sizes, one on either side of the limit if there is one, and at
  first on one through `fixed`. If two guesses in a row were too large, sizes
  grow faster than that line, and the next guess is half as far.

  Args:
    size: the size of a number; it grows with the number.
    room: the limit of sizes.
    start: a number that fits.
    tries: `size` is asked at most so often, beside `start`.
    fixed: the part of `size(start)` that does not grow.
    worth: what is larger by less than this share is not tried.

  Returns:
    The largest number that is known to fit, at most 64 times `start`.
  """
  known = {start: size(start)}
  most = _MAX_GROWTH * start
  for _ in range(tries):
    below = max(n for n, taken in known.items() if taken <= room)
    above = min((n for n in known if n > below), default=None)
    if below == most or above == below + 1:
      break
    if len(known) > 1:
      other = above or max(n for n in known if n < below)
      slope = (known[other] - known[below]) / (other - below)
    else:
      slope = (known[start] - fixed) / start
    limit = above - 1 if above else most
    guess = limit
    if slope > 0:
      guess = below + int(min((room - known[below]) / slope, limit - below))
    least = math.ceil((1 + worth) * below)
    if len(known) > 2 and below not in list(known)[-2:]:
      guess = max((below + guess) // 2, min(guess, least))
    guess = max(guess, below + 1)
    if guess < least:
      break
    known[guess] = size(guess)
  return max(n for n, taken in known.items() if taken <= room)


def largest_microbatch(config: config_lib.ConfigDict,
                       estimate: estimate_lib.Estimate, attempt: Try, *,
                       compiles: int) -> Optional[int]:
  """Looks for the largest microbatch that fits, by compiling others.

  Args:
    config: the config of a step that fits.
    estimate: the estimate of that step.
    attempt: compiles the step of another config.
    compiles: at most so many steps are compiled.

  Returns:
    The largest number of examples that a device was found to hold at once, to
    5 % where the memory grows linearly, and at most 64 times that of
    `estimate`; None if no limit is known.
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

  fixed = sum(taken for name, taken in estimate.state.items()
              if name != 'batch')
  return largest(size, estimate.available, estimate.microbatch, tries=compiles,
                 fixed=min(fixed, estimate.peak), worth=_WORTH)


def remedies(config: config_lib.ConfigDict, estimate: estimate_lib.Estimate,
             attempt: Try) -> list[Remedy]:
  """Compiles each change that could help; the best comes first.

  Args:
    config: the config of a step that does not fit.
    estimate: the estimate of that step.
    attempt: compiles the step of another config.

  Returns:
    What was compiled. Changes that the config does not allow are left out.
  """
  compiled = []
  for flags, changed in _changes(config, estimate):
    try:
      compiled.append(Remedy(flags, attempt(changed)))
    except checks.ConfigError:
      continue
  return sorted(compiled, key=lambda remedy: remedy.estimate.peak)


def _changes(config, estimate) -> Iterator[tuple[str, config_lib.ConfigDict]]:
  """Yields changes that are worth a try, as flags and as a config."""
  if estimate.mesh.get('replica', 1) > 1:
    yield _changed(config, {'mesh.replica': 1, 'mesh.fsdp': -1})
  if estimate.microbatch > 1:
    # One example at a time shows the most that microbatches can save.
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
    estimate: the estimate of the step that does not fit.
    tried: what `remedies` returned.

  Returns:
    The error, to be raised.
  """
  missing, available = -estimate.left(), estimate.available
  if tried:
    best = tried[0]
    left = best.estimate.left()
    result = (f'fits with {_gib(left)} left' if left >= 0 else
              f'helps most, and still misses {_gib(-left)}')
    remedy = f'{best.flags} {result}.'
    if left < 0:
      remedy += ' Add chips, or several of: ' + ', '.join(
          x.flags for x in tried[1:]) + '.' if tried[1:] else ' Add chips.'
  else:
    remedy = 'Add chips.'
  return checks.DoesNotFitError(
      'the training step must fit in the memory of a chip; got '
      f'{estimate.topology}: {_gib(estimate.peak)} needed, '
      f'{_gib(available)} available, {_gib(missing)} missing. {remedy}')


def _gib(size):
  return f'{size / peaks.GIB:.2f} GiB'
