"""Everything that haikd uses of JAX's private API.

No other file of haikd may import `jax._src` or `jax.interpreters`, or read how
a scan lays out its operands. `jax_internals_test.py` tests what each function
relies on.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import jax
from jax._src import clusters
from jax._src import distributed
from jax.experimental.compilation_cache import compilation_cache
from jax.interpreters import partial_eval


class ScanSizes(NamedTuple):
  """The layout of the operands and results of a `lax.scan` equation.

  Operands are constants, carry, then inputs. Results are the carry, then the
  stacked outputs.

  Attributes:
    consts: the number of constants.
    carry: the number of carried arrays.
  """

  consts: int
  carry: int


def scan_sizes(params: dict[str, Any]) -> ScanSizes:
  """Returns the layout of a `lax.scan` equation.

  Args:
    params: the equation's parameters. JAX up to 0.10 has the counts
      `num_consts` and `num_carry`; later versions have `ft_in`, a tuple of
      trees.

  Returns:
    A ScanSizes.
  """
  if 'ft_in' in params:
    consts, carry, _ = map(len, params['ft_in'].unpack())
    return ScanSizes(consts, carry)
  return ScanSizes(params['num_consts'], params['num_carry'])


def drop_dead_code(jaxpr: Any) -> Any:
  """Returns an open jaxpr without the equations that no result uses."""
  live, _ = partial_eval.dce_jaxpr(
      jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
  return live


def varying_axes(array: jax.Array) -> frozenset[str]:
  """Returns the mesh axes along which an array varies, as JAX tracks them.

  It is empty outside of `jax.shard_map` and inside one with `check_vma=False`.
  """
  return jax.typeof(array).manual_axis_type.varying


def cluster_kinds() -> Sequence[Any]:
  """Returns the kinds of cluster that JAX recognises, in the order it tries."""
  return clusters.ClusterEnv._cluster_types


def is_kubernetes(kind: Any) -> bool:
  """Returns whether one of `cluster_kinds` is Kubernetes."""
  return kind is clusters.K8sCluster


def coordination_client() -> Optional[Any]:
  """Returns the client of JAX's coordinator; None before initialisation.

  The client has a key-value store and barriers, neither of which needs a
  device.
  """
  return distributed.global_state.client


def forget_compilation_cache() -> None:
  """Makes JAX read the flags of its compilation cache again.

  JAX reads `jax_enable_compilation_cache` once and keeps the answer.
  """
  compilation_cache.reset_cache()
