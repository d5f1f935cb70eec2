"""Exports that need none of haikd: an archive of weights, and a program."""

from collections.abc import Iterator
import pathlib
from typing import Any, NamedTuple, Optional

import jax
from jax import export
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.data import interface as interface_lib
from haikd.run import stablehlo
from haikd.run import trained
from haikd.storage import archive

WEIGHTS, PROGRAM, CARD = 'weights.npz', 'model.stablehlo', 'README.md'

# How far outputs may lie apart, as a fraction of the largest: the order of sums
# differs between programs.
_TOLERANCES = dict(float32=2e-3, float16=2e-2, bfloat16=1e-1)

# What haikd's own data sets give, for whoever has to give it instead.
_MEANINGS = dict(
    tokens='ids of tokens',
    segments='one number for all positions of a document',
    positions='the place in its document, from 0',
    types='which sentence of a pair, from 0',
    mask='true where a position is real; do not read outputs elsewhere')

_ARCHIVE_USAGE = """\
`weights.npz` holds the parameters and state of a Haiku network. haikd starts
from them with `init='npz:…/weights.npz'`. Without haikd, NumPy reads them:

```python
import numpy as np

weights = np.load('weights.npz')  # `module/name`; state is `state:module/name`.
params, state = {}, {}
for name in weights.files:
  tree = state if name.startswith('state:') else params
  module, _, last = name.removeprefix('state:').rpartition('/')
  tree.setdefault(module, {})[last] = weights[name]
```

`hk.transform_with_state(function).apply(params, state, None, …)` computes with
them, given the function that they are of.
"""

LOAD_PROGRAM = """\
weights = dict(np.load('weights.npz'))
with open('model.stablehlo', 'rb') as file:
  program = export.deserialize(bytearray(file.read()))
"""


class Trial(NamedTuple):
  """What outputs are compared on.

  Attributes:
    raw: inputs as the program takes them.
    view: the same as the network takes them: images scaled.
  """

  raw: Any
  view: base.View


class Written(NamedTuple):
  """What was written.

  Attributes:
    difference: the largest between outputs of the network and of what was
      loaded again.
    usage: for the model card, in Markdown: how to load it.
  """

  difference: float
  usage: str


def make_trial(network: trained.TrainedNetwork, view: base.View,
               pixels: Optional[np.dtype]) -> Trial:
  """Returns what outputs are compared on.

  Args:
    network: the network.
    view: of some examples of the data, as the network takes them.
    pixels: as for `stablehlo.build`. Random images take the place of those of
      the data, which are scaled already.
  """
  columns = view.inputs if isinstance(view.inputs, dict) else {
      interface_lib.ALONE: view.inputs}
  raw, prepared, rng = dict(columns), dict(columns), np.random.default_rng(0)
  for key in network.interface.images:
    shape = columns[key].shape
    raw[key] = (rng.integers(0, 256, shape, np.uint8) if pixels == np.uint8 else
                rng.random(shape, np.float32))
    prepared[key] = network.scaled(raw[key])
  return Trial(_alone(raw), view._replace(inputs=_alone(prepared)))


def write_archive(folder: pathlib.Path, network: trained.TrainedNetwork,
                  trial: Trial) -> Written:
  """Writes weights as an archive, which `npz:` reads.

  Args:
    folder: to write to.
    network: whose weights.
    trial: what outputs are compared on.

  Raises:
    DataError: what is read again is another network.
  """
  archive.save_network(folder / WEIGHTS, network.params, network.state)
  expected = base.Variables(network.params, network.state)
  read = archive.load('--output', f'{archive.PREFIX}{folder / WEIGHTS}',
                      jax.tree.map(_on_one_device, expected))
  difference = largest_difference(
      network.config.student.precision, trial.view.mask,
      network.compiled(*read, trial.view),
      network.compiled(*network.on_device, trial.view))
  return Written(difference, _ARCHIVE_USAGE)


def write_program(folder: pathlib.Path, network: trained.TrainedNetwork,
                  trial: Trial, pixels: Optional[np.dtype]) -> Written:
  """Writes a network as a StableHLO program and an archive of weights.

  Args:
    folder: to write to.
    network: the network.
    trial: what outputs are compared on.
    pixels: as for `stablehlo.build`.

  Raises:
    ConfigError: JAX cannot export the network.
    DataError: what is read again computes something else.
  """
  program = stablehlo.build(network, pixels)
  archive.save_network(folder / WEIGHTS, network.params, network.state)
  (folder / PROGRAM).write_bytes(program.exported.serialize())
  again = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
  with np.load(folder / WEIGHTS) as file:
    weights = dict(file)
  difference = 0.0
  for raw, view in _cuts(trial, program):
    arguments = (raw,) if program.mask is None else (raw, view.mask)
    difference = max(difference, largest_difference(
        network.config.student.precision, view.mask,
        again.call(weights, *arguments),
        network.compiled(*network.on_device, view)))
  return Written(difference, _usage(network, program))


def largest_difference(precision: str, mask: np.ndarray, outputs: Any,
                       expected: Any) -> float:
  """Returns the largest difference of outputs where a mask is true.

  Args:
    precision: what the network computes in.
    mask: bool, `[B]` or `[B, N]`.
    outputs: `[B, …]` or `[B, N, …]`.
    expected: likewise.

  Raises:
    DataError: it is too large to come from the order of sums, or not finite.
  """
  outputs, expected = np.asarray(outputs), np.asarray(expected)
  real = mask  # Outputs at padding are not to be read.
  if outputs.shape[:mask.ndim] != mask.shape:
    real = np.any(mask, axis=tuple(range(1, mask.ndim)))
  outputs, expected = outputs[real], expected[real]
  difference = float(np.max(np.abs(outputs - expected), initial=0.0))
  tolerance = _TOLERANCES[precision] * max(
      1.0, float(np.max(np.abs(expected), initial=0.0)))
  if not difference <= tolerance:  # Nor if it is NaN.
    raise checks.DataError(
        '--output must compute what the network does; got outputs that differ '
        f'by {difference:.3g}, and nothing was written. Report it, with the '
        'config.')
  return difference


def _alone(columns):
  return columns.get(interface_lib.ALONE, columns)


def _on_one_device(array):
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _cuts(trial: Trial, program: stablehlo.Program
          ) -> Iterator[tuple[Any, base.View]]:
  """Yields inputs of several shapes, if the program takes several."""
  rows = program.shapes.batch
  yield _cut(trial, np.s_[:rows])
  mask = trial.view.mask
  if program.shapes.positions:
    shorter = -(-mask.shape[-1] // 2)
    part = (np.s_[:1], *[np.s_[:]] * (mask.ndim - 2), np.s_[:shorter])
    yield _cut(trial, part)


def _cut(trial, part):
  rank, shape = trial.view.mask.ndim, trial.view.mask.shape
  cut = lambda x: x[part] if x.shape[:rank] == shape else x[
      part[0] if isinstance(part, tuple) else part]
  return jax.tree.map(cut, trial.raw), jax.tree.map(cut, trial.view)


def _usage(network, program) -> str:
  """Returns how to call a program, in Markdown."""
  inputs, mask = program.inputs, program.mask
  rows = ([(f"inputs['{key}']", value, _MEANINGS.get(key, ''))
           for key, value in inputs.items()]
          if isinstance(inputs, dict) else [('inputs', inputs, '')])
  images = network.interface.images
  notes = []
  if images:
    notes.append(_about_images(network, inputs))
  if mask is not None:
    rows.append(('mask', mask, _MEANINGS['mask']))
  fixed, limit = program.shapes.batch, program.shapes.limit
  if fixed:
    notes.append(f'The batch is fixed to {fixed}: the network computes with '
                 'its size.')
  if limit:
    notes.append(f'`length` is at most {limit}, that of training.')
  elif network.interface.mask and not program.shapes.positions:
    notes.append('The number of positions is fixed: the network computes with '
                 'it.')
  outputs, = program.exported.out_avals
  rows.append(('outputs', outputs, ''))
  table = ['| | shape | dtype | |', '| --- | --- | --- | --- |', *(
      f'| `{name}` | `[{", ".join(map(str, spec.shape))}]` | {spec.dtype} | '
      f'{meaning} |' for name, spec, meaning in rows)]
  names = 'weights, inputs' + ('' if mask is None else ', mask')
  code = (f'```python\nfrom jax import export\nimport numpy as np\n\n'
          f'{LOAD_PROGRAM}outputs = program.call({names})\n```')
  platforms = ', '.join(stablehlo.PLATFORMS)
  return '\n'.join([
      f'`model.stablehlo` is the network in inference, for {platforms}, and '
      '`weights.npz` is its first argument. JAX and flatbuffers run it:', '',
      code, '', *table, '', *notes, '',
      '`program.mlir_module()` is the StableHLO for other compilers. '
      'In a server, put the weights on the device once, with '
      '`jax.device_put`, and call `jax.jit(program.call)`.', ''])


def _about_images(network, inputs) -> str:
  """Returns how images are prepared, and by whom."""
  data = network.config.data
  specs = inputs if isinstance(inputs, dict) else {
      interface_lib.ALONE: inputs}
  key, = network.interface.images
  is_raw = specs[key].dtype == np.uint8
  pixels = 'uint8 as they are' if is_raw else 'numbers as in the data set'
  text = (f'Images are {pixels}: the program itself '
          f'{"divides by 255 and " if is_raw else ""}standardises them (mean '
          f'{data.mean}, standard deviation {data.std}).')
  if data.image_size:
    text += (' In evaluation they were cut to the square at their centre, '
             f'{data.crop:.1%} of the shorter side, and resized to '
             f'{data.image_size} pixels bilinearly; do that before.')
  return text
