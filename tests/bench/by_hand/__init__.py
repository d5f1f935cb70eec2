"""Training steps written by hand: plain JAX and optax, nothing of haikd.

What `python -m haikd.bench` compares with. Each is one jitted function on one
device, its activations flattened to `[B N, D]` for matrix products.
"""

import pathlib

from by_hand import forward
from by_hand import host
from by_hand import training
import numpy as np


def build(case, path):
  """Returns (function of `(state, *fixed)`, state, fixed) of a case.

  Args:
    case: a dict, as `haikd.bench.cases` describes it, with the `reference`.
    path: of the NumPy file with parameters and batch.

  Returns:
    A jitted function that returns the next state and a dict with `loss`, and
    its arguments.
  """
  if case['kind'] in ('decoding', 'preparation'):
    build_host = host.images if case['kind'] == 'decoding' else host.texts
    return build_host(case, pathlib.Path(path).parent)
  with np.load(path) as arrays:
    if case['kind'] == 'evaluation':
      return forward.build(case, arrays)
    return training.build(case, arrays)
