"""A transpose that is not made before it is used."""

from collections.abc import Callable
import functools
from typing import Any, Union

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_pytree_node_class
class Transposed:
  """The transpose of a table, in place of a kernel `[D, V]`.

  A loop holds its inputs in the usual order, so that the transpose of a table
  which is made outside would be a copy; one that is made inside, where it is
  multiplied, is none. Functions of jax.numpy take it as an array.

  Attributes:
    table: `[V, D]`, such as the embeddings of a network that ties them to its
      logits.

  Args:
    table: likewise.
  """

  def __init__(self, table: Any):
    self.table = table

  @property
  def shape(self) -> tuple[int, ...]:
    """`[D, V]`."""
    return self.table.shape[::-1]

  @property
  def dtype(self) -> np.dtype:
    """That of the table."""
    return self.table.dtype

  @property
  def ndim(self) -> int:
    """2."""
    return self.table.ndim

  @property
  def T(self) -> Any:
    """The table."""
    return self.table

  def astype(self, dtype: jax.typing.DTypeLike) -> 'Transposed':
    """Returns it with a table of that type."""
    return Transposed(self.table.astype(dtype))

  def __getitem__(self, index: Any) -> jax.Array:
    return jnp.asarray(self)[index]

  def __jax_array__(self) -> jax.Array:
    return jnp.transpose(self.table)

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    array = np.asarray(self.table, dtype).T
    return array.copy() if copy else array

  def tree_flatten(self) -> tuple[tuple[Any], None]:
    """Returns the children of the pytree."""
    return (self.table,), None

  @classmethod
  def tree_unflatten(cls, aux: None, children: tuple[Any]) -> 'Transposed':
    """Returns the pytree of some children."""
    del aux
    return cls(*children)


Kernel = Union[jax.Array, Transposed]


def over_kernel(function: Callable[[jax.Array], jax.Array],
                kernel: Kernel) -> Kernel:
  """Applies a function of `[D, V]` to a kernel, which keeps its form."""
  if isinstance(kernel, Transposed):
    return Transposed(jnp.transpose(function(jnp.transpose(kernel.table))))
  return function(kernel)


def scaled_sum(hidden: jax.Array, products: jax.Array,
               unit: jax.typing.ArrayLike, like: Kernel) -> Kernel:
  """Returns the gradient of a kernel, given that of `hidden @ kernel`.

  Args:
    hidden: `[R, D]`.
    products: `[R, V]`, the gradient of the products.
    unit: what the sum over rows is multiplied by.
    like: the kernel, whose form the gradient has.
  """
  einsum = functools.partial(
      jnp.einsum, preferred_element_type=jnp.float32)
  if isinstance(like, Transposed):
    return Transposed(einsum('rv,rd->vd', products, hidden) * unit)
  return einsum('rd,rv->dv', hidden, products) * unit
