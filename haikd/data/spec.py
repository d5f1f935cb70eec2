"""What an example of a data set looks like, known without reading one."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional


class Column(NamedTuple):
  """Shape and dtype of one key of an example.

  `jax.ShapeDtypeStruct` does as well where every size is known: it refuses None
  since JAX 0.11.

  Attributes:
    shape: without the batch axis. The height and width of `image` may be None:
      they differ from example to example.
    dtype: a NumPy dtype.
  """

  shape: tuple[Optional[int], ...]
  dtype: Any


class Spec(NamedTuple):
  """What every example of a data set looks like.

  Attributes:
    columns: `{key: Column}` of one example.
    num_classes: V, or None.
  """

  columns: Mapping[str, Column]
  num_classes: Optional[int]
