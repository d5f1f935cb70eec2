"""Functions that are compiled once for all seeds."""

from typing import Any

import numpy as np


class Seeded:
  """A compiled function whose last argument is the seed.

  Were it a constant of the program, each seed of a run would be compiled anew.

  Args:
    function: made by `jax.jit`, or compiled.
    seed: that it is called with.
  """

  def __init__(self, function: Any, seed: np.uint32):
    self._function, self._seed = function, seed

  def __call__(self, *arguments: Any) -> Any:
    """Calls the function."""
    return self._function(*arguments, self._seed)

  def trace(self, *arguments: Any) -> Any:
    """Returns it as `jax.jit` traces it."""
    return self._function.trace(*arguments, self._seed)

  def lower(self, *arguments: Any) -> 'Seeded':
    """Returns it lowered."""
    return Seeded(self._function.lower(*arguments, self._seed), self._seed)

  def compile(self) -> 'Seeded':
    """Returns it compiled, once it is lowered."""
    return Seeded(self._function.compile(), self._seed)

  def memory_analysis(self) -> Any:
    """Returns the memory that it takes, once it is compiled."""
    return self._function.memory_analysis()

  def as_text(self) -> str:
    """Returns the text of the program, once it is lowered or compiled."""
    return self._function.as_text()
