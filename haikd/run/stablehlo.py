"""A network in inference as a StableHLO program, which needs none of haikd.

The program takes the weights as its first argument: constants of a program may
not exceed 2 GB.
"""

from collections.abc import Iterator
import importlib.util
from typing import Any, NamedTuple, Optional

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.core import signatures
from haikd.data import interface as interface_lib
from haikd.run import trained
from haikd.storage import archive

PLATFORMS = ('cpu', 'cuda', 'tpu')

# Names of the axes before an example's: the batch, then those of the mask.
_BATCH, _POSITIONS = 'batch', {1: ('length',), 2: ('texts', 'length')}


class Shapes(NamedTuple):
  """The shapes that a program takes.

  Attributes:
    batch: the number of examples; None for any.
    positions: whether the axes of the mask may have any size.
    limit: the most positions of an example; None for no limit.
  """

  batch: Optional[int]
  positions: bool
  limit: Optional[int]


class Program(NamedTuple):
  """A network as a program.

  Attributes:
    exported: takes weights by name, inputs and, if there is one, a mask.
    inputs: what inputs are: `jax.ShapeDtypeStruct`, by key if there are several
      or they have one.
    mask: what the mask is; None if the program takes none.
    shapes: the shapes that it takes.
  """

  exported: export.Exported
  inputs: Any
  mask: Optional[jax.ShapeDtypeStruct]
  shapes: Shapes


def check_installed() -> None:
  """Refuses to go on without what writes a program.

  Raises:
    ConfigError: a package is missing.
  """
  if importlib.util.find_spec('flatbuffers') is None:
    raise checks.ConfigError(
        '--format=stablehlo must have the package flatbuffers; got none. Run '
        '`pip install haikd[export]`.')


def build(network: trained.TrainedNetwork,
          pixels: Optional[np.dtype] = None) -> Program:
  """Returns a network as a program of as many shapes as it can have.

  Args:
    network: the network. Its outputs are materialised, float32.
    pixels: the dtype of images as the data set has them, which the program
      scales as evaluation does; None without images.

  Raises:
    ConfigError: JAX cannot export the network.
  """
  run = _function(network)
  names = archive.named(network.params, network.state)
  weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype)
             for name, array in names.items()}
  first_error = None
  for shapes in _attempts(network):
    inputs, mask = _specs(network, pixels, shapes)
    arguments = (weights, inputs) if mask is None else (weights, inputs, mask)
    try:
      exported = export.export(jax.jit(run), platforms=PLATFORMS)(*arguments)
    except Exception as err:  # Whatever a user's network raises.
      first_error = first_error or err
    else:
      return Program(exported, inputs, mask, shapes)
  assert first_error is not None
  raise checks.ConfigError(
      '--format=stablehlo must be of a network that JAX can export for '
      f'{", ".join(PLATFORMS)}; got {checks.describe(first_error)}. Use '
      '--format=npz.') from first_error


def _function(network):
  """Returns `(weights, inputs, mask) -> outputs`, all of it traceable."""
  apply, images = network.function(), network.interface.images
  scale = network.image_view.scale

  def run(weights, inputs, mask=None):
    params, state = archive.unnamed(weights)
    columns = inputs if isinstance(inputs, dict) else {
        interface_lib.ALONE: inputs}
    columns = {key: _scaled(value, scale) if key in images else value
               for key, value in columns.items()}
    if mask is None:
      first, = {value.shape[0] for value in columns.values()}
      mask = jnp.ones((first, *network.interface.mask), bool)
    alone = columns.get(interface_lib.ALONE)
    return apply(params, state,
                 base.View(columns if alone is None else alone, mask))

  return run


def _scaled(image, scale):
  if image.dtype == jnp.uint8:
    image = image.astype(jnp.float32) / 255
  return scale(image.astype(jnp.float32))


def _attempts(network) -> Iterator[Shapes]:
  """Yields shapes to try, the freest first."""
  if network.interface.mask and not network.interface.images:
    yield Shapes(None, True, None)
    yield Shapes(None, True, network.interface.mask[-1])
  yield Shapes(None, False, None)
  yield Shapes(1, False, None)


def _specs(network, pixels, shapes):
  """Returns shapes and dtypes of the inputs and of the mask, if it is used."""
  interface, images = network.interface, network.interface.images
  axes = interface.mask
  rank = len(axes)
  if shapes.positions:
    names = _POSITIONS.get(rank) or tuple(f'axis_{i}' for i in range(rank))
    last = names[-1]
    # Where distances between positions are laid out, JAX must know the first.
    limits = [f'{last}*{last} >= {last}'] + (
        [f'{last} <= {shapes.limit}'] if shapes.limit else [])
    batch, *axes = export.symbolic_shape(
        ', '.join((_BATCH, *names)), constraints=limits)
  elif shapes.batch is None:
    batch, = export.symbolic_shape(_BATCH)
  else:
    batch = shapes.batch

  def spec(key):
    shape, dtype = interface.inputs[key]
    if shape[:rank] == interface.mask:
      shape = (*axes, *shape[rank:])
    if key in images and pixels == np.uint8:
      dtype = 'uint8'
    return jax.ShapeDtypeStruct((batch, *shape), np.dtype(dtype))

  inputs = {key: spec(key) for key in interface.inputs}
  model = registry.models[network.config.student.model].function
  takes_mask = rank and 'mask' in signatures.option_names(model)
  mask = jax.ShapeDtypeStruct((batch, *axes), np.dtype(bool)) if (
      takes_mask) else None
  return inputs.get(interface_lib.ALONE, inputs), mask
