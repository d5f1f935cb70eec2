"""Prints the memory that loading takes beyond the network, in bytes.

  python tests/interop/measure_memory.py [FOLDER SIZE STACKED STORED LOADED]

writes weights of about SIZE megabytes in the dtype STORED and loads them in the
dtype LOADED. They are a matrix for each block, and a table as large as four
matrices. Without arguments it measures 400 MB of each kind, each in a
separate process. Mapped pages of files do not count, since the system drops
them when it needs room.
"""

import itertools
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np

from haikd import interop
from haikd.core import base
from haikd.interop import pretrained_source
from haikd.interop import rules

DEPTH = 8


class Family:
  MODEL = 'plain'
  MODEL_TYPES = ('plain',)

  @staticmethod
  def read_config(fields):
    return dict(depth=fields.take('depth'), width=fields.take('width'))

  @staticmethod
  def tensors(options, names):
    return rules.Tensors((
        rules.Rule('embed', 'embeddings', 'embed.weight', vocabulary=0),
        *rules.linear('block/mlp/up', 'h.{layer}.up', bias=False)))


def write(folder, megabytes, dtype):
  """Writes a table as large as 4 matrices, and 8 matrices, row by row."""
  names = {np.dtype(np.float32): 'F32', np.dtype(jnp.bfloat16): 'BF16'}
  width = int((megabytes * 2**20 / 12 / dtype.itemsize)**0.5)
  shapes = {'embed.weight': (4 * width, width)}
  shapes.update({f'h.{i}.up.weight': (width, width) for i in range(DEPTH)})
  header, position = {}, 0
  for name, shape in shapes.items():
    size = shape[0] * shape[1] * dtype.itemsize
    header[name] = dict(dtype=names[dtype], shape=shape,
                        data_offsets=[position, position + size])
    position += size
  content = json.dumps(header).encode()
  with open(folder / 'model.safetensors', 'wb') as file:
    file.write(len(content).to_bytes(8, 'little') + content)
    row = np.arange(width).astype(dtype).tobytes()
    for shape in shapes.values():
      for _ in range(shape[0]):
        file.write(row)
  (folder / 'config.json').write_text(
      json.dumps(dict(model_type='plain', depth=DEPTH, width=width)))
  return width


def anonymous():
  """Returns the bytes of this process that are no pages of files."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'RssAnon:\s+(\d+)', status)[1]) * 1024


def watch(peak, over):
  """Keeps the peak of `anonymous` in `peak[0]` until `over` is set."""
  while not over.is_set():
    peak[0] = max(peak[0], anonymous())
    time.sleep(0.002)


def main(folder, megabytes, stacked, stored, loaded):
  """Writes and loads weights of one kind, and prints JSON."""
  pretrained_source.families = lambda: [Family]
  folder = pathlib.Path(folder)
  width = write(folder, int(megabytes), np.dtype(jnp.dtype(stored)))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(loaded), sharding=place)

  params = dict(embed=dict(embeddings=spec(4 * width, width)))
  if stacked == 'True':
    params['__layer_stack_no_per_layer/block/mlp/up'] = dict(
        w=spec(DEPTH, width, width))
  else:
    params.update({f'block_{i}/mlp/up': dict(w=spec(width, width))
                   for i in range(DEPTH)})
  expected = base.Variables(params, {})
  options = dict(depth=DEPTH, width=width)
  # The first computation allocates memory that does not belong to loading.
  jax.block_until_ready(jax.jit(jnp.sum)(jnp.ones((8, 8))))
  before, peak, over = anonymous(), [0], threading.Event()
  watcher = threading.Thread(target=watch, args=(peak, over))
  watcher.start()
  start = time.monotonic()
  network = interop.load('init', f'hf:{folder}', expected, options=options)
  seconds = time.monotonic() - start
  over.set()
  watcher.join()
  sizes = [x.nbytes for x in jax.tree.leaves(network)]
  np.testing.assert_array_equal(
      network.params['embed']['embeddings'][-1].astype(jnp.float32),
      np.arange(width).astype(jnp.dtype(stored)).astype(jnp.dtype(loaded)))
  largest = 4 * width * width * min(
      jnp.dtype(stored).itemsize, jnp.dtype(loaded).itemsize)
  print(json.dumps(dict(
      extra=peak[0] - before - sum(sizes), largest=largest, seconds=seconds)))


def each():
  """Measures all kinds, one after another."""
  dtypes = (('float32', 'bfloat16'), ('bfloat16', 'float32'),
            ('float32', 'float32'))
  for stacked, (stored, loaded) in itertools.product(('True', 'False'), dtypes):
    with tempfile.TemporaryDirectory() as folder:
      out = subprocess.run(
          [sys.executable, __file__, folder, '400', stacked, stored, loaded],
          capture_output=True, text=True, check=True).stdout
    result = json.loads(out)
    print(f'{stored} -> {loaded}, stacked: {stacked}: '
          f'{result["extra"] / 2**20:.0f} MB, '
          f'{result["extra"] / result["largest"]:.2f} of the largest tensor, '
          f'{result["seconds"]:.1f} s')


if __name__ == '__main__':
  main(*sys.argv[1:]) if sys.argv[1:] else each()
