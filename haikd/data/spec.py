"""What an example of a data set looks like, known without reading one."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional


class Column(NamedTuple):
  """Shape and dtype of one key of an example.

  A `jax.ShapeDtypeStruct` may be used instead where every size is known. Since
  JAX 0.11 it does not accept None.

  Attributes:
    shape: without the batch axis. Height and width of `image` are None if they
      differ from example to example.
    dtype: a NumPy dtype.
  """

  shape: tuple[Optional[int], ...]
  dtype: Any


class Spec(NamedTuple):
  """What every example of a data set looks like.

  Attributes:
    columns: `{key: Column}`.
    num_classes: V, or None.
  """

  columns: Mapping[str, Column]
  num_classes: Optional[int]
