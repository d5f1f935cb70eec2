"""Factors of the weights of an objective that follow from how training goes.

A term k with the weight w_k and the factor b_k enters the objective as
w_k b_k L_k, where L_k is its mean over the global batch. Everything here is
computed from such means, and from norms of global gradients, so that it is the
same on every mesh and for every number of microbatches. A mean of 0 values says
nothing and changes nothing; nor do terms of other stages.
"""

from collections.abc import Collection, Mapping, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks

# Numbers of each term, float32 scalars.
State = dict[str, dict[str, jax.Array]]
Scalars = Mapping[str, jax.Array]

FIXED, GRADIENT_NORM, UNCERTAINTY, DTP = config_lib.BALANCES

_MODULE, _LOG_VARIANCE = 'balance', 'log_variance'
_SMALLEST = 1e-6  # Of an indicator, and of the rest of a loss.
# How far below 0 rounding may take a mean: a temperature multiplies a loss, and
# its rounding, by its square.
_NOISE = 1e-2


class Balance(NamedTuple):
  """How the factors are found. Built by `build_balance`.

  Attributes:
    kind: one of `fixed`, `gradient_norm`, `uncertainty`, `dtp`.
    alpha: of gradient_norm: the power of the part of a loss that is left.
    every: of gradient_norm: steps between measurements.
    gamma: of dtp: the power of what is left to be learned.
    rate: the part that a new value has in a running mean.
  """

  kind: str = FIXED
  alpha: float = 0.0
  every: int = 1
  gamma: float = 0.0
  rate: float = 1.0

  def begin(self, names: Collection[str]) -> State:
    """Returns the state before the first step.

    Args:
      names: of the terms of all stages.
    """
    start: dict[str, float] = {}
    if self.kind == GRADIENT_NORM:
      start = dict(initial=0.0, loss=0.0, norm=0.0)
    if self.kind == DTP:
      start = dict(initial=0.0, indicator=math.exp(-1))
    return {name: {key: jnp.float32(x) for key, x in start.items()}
            for name in names if start}

  def parameters(self, names: Collection[str]) -> dict[str, Any]:
    """Returns what is learned for terms, to lie beside what they learn."""
    if self.kind != UNCERTAINTY:
      return {}
    return {name: {_MODULE: {_LOG_VARIANCE: jnp.zeros((), jnp.float32)}}
            for name in names}

  def factors(self, weights: Mapping[str, Any], state: State,
              align: base.ArrayTree) -> dict[str, jax.Array]:
    """Returns the factor of each term, float32 scalars; {} if all are 1.

    Args:
      weights: w_k of the terms of this stage, at this step.
      state: from the last step.
      align: what terms learn.

    References:
      gradient_norm: Chen et al., GradNorm, arXiv:1711.02257. At the minimum of
      its equation 2 the norms of the gradients are what equation 1 asks for,
      b_k |dL_k| = c r_k^alpha, where r_k is the part of the loss that is left,
      L_k(t) / L_k(0), over its mean over terms; and the factors add up to the
      number of terms. They are set to this solution. The authors approach it
      by steps along the sign of the gradient of equation 2, with a learning
      rate of its own.
      uncertainty: Kendall, Gal and Cipolla, arXiv:1705.07115, equation 10 with
      s = log sigma^2: exp(-s_k) L_k + s_k / 2.
      dtp: Guo et al., Dynamic Task Prioritization for Multitask Learning, ECCV
      2018: -(1 - kappa)^gamma log kappa, with the running mean of an indicator
      of performance kappa. That of a term, which need not have an accuracy, is
      exp(-L_k(t) / L_k(0)): exp(-1) at the start, and 1 when nothing is left.
    """
    if self.kind == UNCERTAINTY:
      return {name: jnp.exp(-_log_variance(align, name)) for name in weights}
    if self.kind == DTP:
      kappa = {name: state[name]['indicator'] for name in weights}
      return {name: -(1 - x)**self.gamma * jnp.log(x)
              for name, x in kappa.items()}
    if self.kind == GRADIENT_NORM:
      return self._of_norms(weights, state)
    return {}

  def _of_norms(self, weights, state):
    column = lambda key: jnp.stack([state[name][key] for name in weights])
    norm, loss, initial = map(column, ('norm', 'loss', 'initial'))
    weight = jnp.stack([jnp.float32(x) for x in weights.values()])
    # A term that is off, or whose gradient is 0, is not weighed with others.
    counts = (weight > 0) & (norm > 0) & (initial > 0)
    number = jnp.maximum(jnp.sum(counts), 1)
    left = jnp.where(
        counts, jnp.maximum(loss / jnp.where(counts, initial, 1), _SMALLEST), 0)
    pace = jnp.where(counts, left * number / _positive(jnp.sum(left)), 1)
    factor = jnp.where(
        counts, pace**self.alpha / jnp.where(counts, norm, 1), 0)
    factor *= number / _positive(jnp.sum(factor))
    return dict(zip(weights, jnp.where(counts, factor, 1)))

  def observe(self, state: State, means: Scalars, seen: Scalars) -> State:
    """Returns the state after a step.

    Args:
      state: before it.
      means: L_k of the terms of this stage.
      seen: whether anything counted in them, bool.
    """
    if self.kind != DTP:
      return state
    found = dict(state)
    for name, mean in means.items():
      mean = jnp.maximum(mean, 0)
      initial = _first(state[name]['initial'], mean)
      known = seen[name] & (initial > 0)
      indicator = jnp.maximum(
          jnp.exp(-mean / jnp.where(known, initial, 1)), _SMALLEST)
      old = state[name]['indicator']
      found[name] = dict(
          initial=initial,
          indicator=jnp.where(known, old + self.rate * (indicator - old), old))
    return found

  def measure(self, state: State, norms: Scalars, means: Scalars,
              seen: Scalars) -> State:
    """Returns the state after gradients were measured.

    Args:
      state: before.
      norms: `|dL_k|` of the terms of this stage; 0 where it is not known.
      means: as for `observe`.
      seen: as for `observe`.
    """
    found = dict(state)
    for name, norm in norms.items():
      old, mean = state[name], jnp.maximum(means[name], 0)
      # Numbers beyond the range of float16 make a gradient infinite.
      known = seen[name] & jnp.isfinite(norm) & (norm > 0)
      rate = jnp.where(old['norm'] > 0, self.rate, 1.0)
      new = dict(
          initial=_first(old['initial'], mean),
          loss=old['loss'] + rate * (mean - old['loss']),
          norm=old['norm'] + rate * (norm - old['norm']))
      found[name] = {key: jnp.where(known, new[key], old[key]) for key in old}
    return found

  def learn(self, align: base.ArrayTree, grads: base.ArrayTree,
            weights: Mapping[str, Any], means: Scalars,
            seen: Scalars) -> tuple[jax.Array, base.ArrayTree]:
    """Returns what learned factors add to the objective and its gradient.

    For `uncertainty` that is w_k s_k / 2 of every term. Its weight w_k is that
    of both parts, so that the optimum, exp(-s_k) = 1 / (2 L_k), does not undo
    it.

    Args:
      align: what terms learn.
      grads: the gradient of the weighted sum with respect to it.
      weights: as for `factors`.
      means: as for `observe`.
      seen: as for `observe`.

    Returns:
      A float32 scalar, and the gradient of the objective.
    """
    value, found = jnp.zeros((), jnp.float32), dict(grads)
    for name in weights if self.kind == UNCERTAINTY else ():
      log_variance = _log_variance(align, name)
      weight = jnp.where(seen[name], weights[name], 0.0)
      value += 0.5 * weight * log_variance
      slope = weight * (0.5 - jnp.exp(-log_variance) * means[name])
      found[name] = {**grads[name], _MODULE: {_LOG_VARIANCE: slope}}
    return value, found


def build_balance(value: Any, counts: Sequence[int]) -> Balance:
  """Returns the balance of a run.

  Args:
    value: `config.balance`, checked.
    counts: the number of terms in each stage.

  Raises:
    ConfigError: no stage has two terms to balance.
  """
  found = Balance(**config_lib.balance(value))
  if found.kind == FIXED or max(counts) > 1:
    return found
  raise checks.ConfigError(
      'config.balance must be fixed where there is one loss; got '
      f'{found.kind!r}. Add a term to config.losses, or set '
      'config.distillation.alpha.')


def check_means(metrics: Mapping[str, float], step: int) -> None:
  """Refuses a loss below 0, of which no part can be left.

  Args:
    metrics: of a step.
    step: its number, for the message.

  Raises:
    ConfigError: the mean of a term is negative.
  """
  for name, value in metrics.items():
    if name.startswith('loss/') and value < -_NOISE:
      raise checks.ConfigError(
          'config.balance must weigh losses that are never negative; got '
          f"{name}={value:.6g} at step {step}. Leave that loss out, or set "
          "config.balance='fixed'.")


def _log_variance(align, name):
  return align[name][_MODULE][_LOG_VARIANCE]


def _first(initial, mean):
  """Returns the first mean above 0; 0 if there is none yet."""
  return jnp.where(initial > 0, initial, mean)


def _positive(value):
  """Returns a divisor that is not 0."""
  return jnp.maximum(value, jnp.finfo(jnp.float32).tiny)
