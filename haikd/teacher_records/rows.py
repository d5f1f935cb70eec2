"""What a record is of: the content of a row, and nothing about its place."""

import hashlib

import numpy as np

from haikd.core import base

DIGEST_BYTES = 16


def digests(batch: base.Batch) -> list[bytes]:
  """Returns a hash for each row of what the teacher gets, and where it counts.

  Args:
    batch: NumPy arrays.
  """
  view = batch.view('teacher')
  inputs = view.inputs if isinstance(view.inputs, dict) else {'': view.inputs}
  columns = [(f'input {name}', inputs[name]) for name in sorted(inputs)]
  columns.append(('mask', view.mask))
  if batch.target_mask is not None:
    columns.append(('target_mask', batch.target_mask))
  start = hashlib.sha256()
  for name, column in columns:
    start.update(f'{name} {column.dtype.str} {column.shape[1:]}\n'.encode())
  result = []
  for row in range(len(view.mask)):
    digest = start.copy()
    for _, column in columns:
      digest.update(column[row].tobytes())
    result.append(digest.digest()[:DIGEST_BYTES])
  return result


def kept(batch: base.Batch, axes: int) -> np.ndarray:
  """Returns where a row's predictions count.

  Args:
    batch: NumPy arrays.
    axes: how many axes predictions have before their classes.

  Returns:
    bool, with so many axes.
  """
  mask = batch.mask if batch.target_mask is None else batch.target_mask
  return mask.any(axis=tuple(range(axes, mask.ndim)))


def uniform(digest: bytes, copies: int, positions: int) -> np.ndarray:
  """Returns the random numbers of a row, which depend on its content alone.

  Args:
    digest: of the row.
    copies: C.
    positions: P.

  Returns:
    `[P, C]` float32, from 0 to below 1.
  """
  content = hashlib.shake_128(digest).digest(4 * copies * positions)
  # 24 bits are all that float32 holds.
  numbers = np.frombuffer(content, '<u4').reshape(copies, positions) >> 8
  return (numbers.T * 2.0**-24).astype(np.float32)
