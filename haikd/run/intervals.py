"""Means over runs, with Student's t intervals."""

from collections.abc import Sequence
import math
import statistics
from typing import NamedTuple, Optional


class Interval(NamedTuple):
  """A mean, and its 95 % interval: mean ± half_width; None for one value."""

  mean: float
  half_width: Optional[float]


def of_mean(values: Sequence[float]) -> Interval:
  """Returns the mean of a normal sample with its 95 % confidence interval.

  The half width is s t / sqrt(n), t with n - 1 degrees of freedom.

  Args:
    values: one or more.

  Returns:
    An Interval; NaN if a value is not finite.
  """
  if not all(map(math.isfinite, values)):
    return Interval(math.nan, math.nan)
  n = len(values)
  if n == 1:
    return Interval(values[0], None)
  from scipy import special  # Slow to import.
  quantile = float(special.stdtrit(n - 1, 0.975))
  return Interval(statistics.fmean(values),
                  quantile * statistics.stdev(values) / math.sqrt(n))
