"""Prints how much memory of its own loading takes, in bytes.

  python tests/interop/measure_memory.py [FOLDER MEGABYTES STACKED FROM TO]

writes weights of about so many megabytes, in blocks and a table that is as
large as four of their matrices, and loads them; without arguments 400, of each
kind in a process of its own. Pages of files that are mapped do not count, since
the system drops them as it likes.
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
  """Writes a table of 4 parts and 8 matrices of one, block by block."""
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
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'RssAnon:\s+(\d+)', status)[1]) * 1024


def watch(peak, over):
  while not over.is_set():
    peak[0] = max(peak[0], anonymous())
    time.sleep(0.002)


def main(folder, megabytes, stacked, stored, wanted):
  pretrained_source.families = lambda: [Family]
  folder = pathlib.Path(folder)
  width = write(folder, int(megabytes), np.dtype(jnp.dtype(stored)))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def like(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(wanted), sharding=place)

  params = dict(embed=dict(embeddings=like(4 * width, width)))
  if stacked == 'True':
    params['__layer_stack_no_per_layer/block/mlp/up'] = dict(
        w=like(DEPTH, width, width))
  else:
    params.update({f'block_{i}/mlp/up': dict(w=like(width, width))
                   for i in range(DEPTH)})
  expected = base.Variables(params, {})
  options = dict(depth=DEPTH, width=width)
  # What only the first time takes is no part of it.
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
      np.arange(width).astype(jnp.dtype(stored)).astype(jnp.dtype(wanted)))
  largest = 4 * width * width * min(
      jnp.dtype(stored).itemsize, jnp.dtype(wanted).itemsize)
  print(json.dumps(dict(
      own=peak[0] - before - sum(sizes), largest=largest, seconds=seconds)))


def each():
  """Measures all kinds, one after the other."""
  dtypes = (('float32', 'bfloat16'), ('bfloat16', 'float32'),
            ('float32', 'float32'))
  for stacked, (stored, wanted) in itertools.product(('True', 'False'), dtypes):
    with tempfile.TemporaryDirectory() as folder:
      out = subprocess.run(
          [sys.executable, __file__, folder, '400', stacked, stored, wanted],
          capture_output=True, text=True, check=True).stdout
    found = json.loads(out)
    print(f'{stored} -> {wanted}, stacked: {stacked}: '
          f'{found["own"] / 2**20:.0f} MB, '
          f'{found["own"] / found["largest"]:.2f} of the largest tensor, '
          f'{found["seconds"]:.1f} s')


if __name__ == '__main__':
  main(*sys.argv[1:]) if sys.argv[1:] else each()
