r"""How fast images are read, cropped and resized for training.

  taskset -c 0 python tests/bench/read_images.py --images=FOLDER
  python tests/bench/read_images.py --images=FOLDER --workers=0,1,2,4

The folder has the images of each class in a folder of its own. Prints images a
second, from files to the batches that training takes (a random window resized
to 224 x 224, mirrored or not, standardised), with each number of workers, and
of Pillow alone in a loop: open, crop such a window, resize it, make an array of
it. All are medians of interleaved rounds with their range, and so are ratios to
Pillow. Batches before the first round are not counted.
"""

import argparse
from collections.abc import Callable
import os
import pathlib
import random
import statistics
import time
from typing import Any

import numpy as np
from PIL import Image

from haikd import config as config_lib
from haikd.data import pipeline

SIZE = 224
_ALONE = 'Pillow alone'


def build(folder: str, workers: int, batch_size: int):
  """Returns an iterator of training batches."""
  config = config_lib.base()
  config.batch_size = batch_size
  with config.data.ignore_type():
    config.data.update(dict(
        name='image_folder', source_dir=folder, image_size=SIZE,
        augment=dict(random_resized_crop={}, flip={}), options={},
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    if 'workers' in config.data:
      config.data.workers = workers
  return pipeline.build_data(
      config, process_index=0, process_count=1).train()


def window(rng: random.Random, width: int, height: int):
  """Returns a random window of an image, as `random_resized_crop` takes."""
  for _ in range(10):
    area = rng.uniform(0.08, 1) * width * height
    aspect = (4 / 3)**rng.uniform(-1, 1)
    rows, columns = round((area / aspect)**0.5), round((area * aspect)**0.5)
    if 0 < rows <= height and 0 < columns <= width:
      top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
      return left, top, left + columns, top + rows
  return 0, 0, width, height


def by_pillow(paths: list[pathlib.Path], rng: random.Random) -> None:
  """Reads images with Pillow alone."""
  for path in paths:
    with Image.open(path) as image:
      cropped = image.convert('RGB').crop(window(rng, *image.size))
      np.asarray(cropped.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--images', required=True)
  parser.add_argument('--workers', default='0')
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--batches', type=int, default=12)
  parser.add_argument('--rounds', type=int, default=5)
  flags = parser.parse_args()
  count, rng = flags.batches * flags.batch_size, random.Random(0)
  paths = sorted(x for x in pathlib.Path(flags.images).rglob('*')
                 if x.is_file())
  named = {f'{x} workers': build(flags.images, int(x), flags.batch_size)
           for x in flags.workers.split(',')}
  rates = {name: [] for name in (*named, _ALONE)}
  for _ in range(flags.rounds):
    for name, batches in named.items():
      for _ in range(10):  # What was read ahead.
        next(batches)
      rates[name].append(rate(count, lambda: [
          next(batches) for _ in range(flags.batches)]))
      time.sleep(2)  # It reads ahead.
    rates[_ALONE].append(
        rate(count, lambda: by_pillow(rng.choices(paths, k=count), rng)))
  for name, found in rates.items():
    seconds, cpu = zip(*found)
    ratios = [x / y for x, (_, y) in zip(cpu, rates[_ALONE])]
    print(f'{name}: {_range(seconds, ",.0f")} images a second, '
          f'{_range(cpu, ",.0f")} a second of a core, '
          f'{_range(ratios, ".2f")} of Pillow alone')


def rate(count: int, run: Callable[[], Any]) -> tuple[float, float]:
  """Returns images a second, and a second of any core's time."""
  start, busy = time.perf_counter(), cpu_seconds()
  run()
  return (count / (time.perf_counter() - start),
          count / (cpu_seconds() - busy))


def cpu_seconds() -> float:
  """Returns the time that this process and its children have computed for."""
  me, total = os.getpid(), time.process_time()
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = stat.read_text().rpartition(')')[2].split()
    except OSError:  # It has ended.
      continue
    if int(fields[1]) == me:
      total += (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
  return total


def _range(values, form):
  return (f'{statistics.median(values):{form}} '
          f'({min(values):{form}}-{max(values):{form}})')


if __name__ == '__main__':
  main()
