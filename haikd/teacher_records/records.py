"""Reads what was recorded of the rows of a batch."""

from typing import Any, Optional

import jax
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.teacher_records import complete
from haikd.teacher_records import folder as folder_lib
from haikd.teacher_records import recipe as recipe_lib
from haikd.teacher_records import rows as rows_lib
from haikd.teacher_records import shards as shards_lib


class Records:
  """Complete records of a data set.

  They are found by the content of rows, whatever the order and the batches.

  Attributes:
    recipe: what decided their content.
    network: what the config said of the teacher.
    unembedding: what turns hidden states into logits; None for other kinds.

  Args:
    path: the folder.

  Raises:
    DataError: the folder has none, or not all of them.
  """

  def __init__(self, path: str):
    self._folder = folder_lib.place(path)
    manifest = complete.read_manifest(self._folder)
    with complete.explaining_damage(self._folder):
      self.recipe = recipe_lib.Recipe(**manifest['recipe'])
      self.network = manifest['network']
      self._codec = self.recipe.codec()
    self.unembedding: Optional[base.LinearLogits] = None
    if self.recipe.options['kind'] == recipe_lib.HIDDEN:
      self.unembedding = complete.read_unembedding(self._folder)
    self._shards = shards_lib.Shards(self._folder, manifest)
    index = complete.read_index(self._folder)
    self._digests = index
    keys = np.ascontiguousarray(index[:, :8]).view('<u8')[:, 0]
    self._order = np.argsort(keys, kind='stable')
    self._keys = keys[self._order]

  def join(self, batch: base.Batch, epochs: np.ndarray) -> base.Batch:
    """Returns a batch with what was recorded of its rows.

    Args:
      batch: NumPy arrays.
      epochs: `[B]` integers, how often each row was read before: it decides
        which of the copies is taken.

    Raises:
      DataError: a row without a record, or a damaged one.
    """
    keep = rows_lib.kept(batch, self.recipe.axes)
    teacher = self._codec.zeros(keep.shape)
    # Rows without a position that counts are padding.
    places = np.flatnonzero(keep.reshape(len(keep), -1).any(axis=1)).tolist()
    digests = rows_lib.digests(batch)
    chosen = [digests[place] for place in places]
    copies = self.recipe.copies
    numbers = [self.find(digest) * copies + int(epochs[place]) % copies
               for place, digest in zip(places, chosen)]
    for place, content in zip(places, self._shards.read(numbers, chosen)):
      decoded = self._codec.decode(content, int(keep[place].sum()))
      for column, values in zip(teacher, decoded):
        if keep.ndim == 1:
          column[place] = values[0]
        else:
          column[place][keep[place]] = values
    return batch._replace(teacher=teacher)

  def find(self, digest: bytes) -> int:
    """Returns the row of a digest; raises DataError if there is none."""
    key = np.frombuffer(digest[:8], '<u8')[0]
    place = int(np.searchsorted(self._keys, key))
    while place < len(self._keys) and self._keys[place] == key:
      row = int(self._order[place])
      if self._digests[row].tobytes() == digest:
        return row
      place += 1
    raise checks.DataError(
        f'{folder_lib.FIELD} must hold a record of each row of config.data; got'
        f' none of a row in {self._folder}. The examples are others: what they '
        'hold, the length, packing or chat template of texts, or whether '
        'haikd[images] resizes images. Record again, or bring that back.')


def targets_spec(recipe_options: Any, classes: int, width: Optional[int],
                 spec: base.Batch, axes: int) -> Any:
  """Returns the shapes of what `join` adds.

  Args:
    recipe_options: kind and options.
    classes: V.
    width: D, of hidden states.
    spec: a batch of ShapeDtypeStructs.
    axes: how many axes predictions have before their classes.
  """
  shape = spec.mask.shape[:axes]
  one = recipe_lib.codec(recipe_options, classes, width).zeros((1,) * axes)
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[axes:]), x.dtype), one)


def as_logits(teacher: Any,
              unembedding: Optional[base.LinearLogits]) -> base.TeacherLogits:
  """Returns what losses compare with.

  Args:
    teacher: of a batch.
    unembedding: JAX arrays, for hidden states.
  """
  if unembedding is None:
    return teacher
  scale = teacher.scale[..., None].astype(unembedding.kernel.dtype)
  return unembedding._replace(
      hidden=teacher.values.astype(unembedding.kernel.dtype) * scale)
