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
import pathlib
import random
import statistics
import time

import numpy as np
from PIL import Image

from haikd import config as config_lib
from haikd.data import pipeline

SIZE = 224


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
  rates = {name: [] for name in (*named, 'Pillow alone')}
  for _ in range(flags.rounds):
    for name, batches in named.items():
      for _ in range(10):  # What was read ahead.
        next(batches)
      start = time.perf_counter()
      for _ in range(flags.batches):
        next(batches)
      rates[name].append(count / (time.perf_counter() - start))
      time.sleep(2)  # It reads ahead.
    start = time.perf_counter()
    by_pillow(rng.choices(paths, k=count), rng)
    rates['Pillow alone'].append(count / (time.perf_counter() - start))
  for name, found in rates.items():
    ratios = [x / y for x, y in zip(found, rates['Pillow alone'])]
    print(f'{name}: {statistics.median(found):,.0f} images a second '
          f'({min(found):,.0f}-{max(found):,.0f}); of Pillow alone '
          f'{statistics.median(ratios):.2f} '
          f'({min(ratios):.2f}-{max(ratios):.2f})')


if __name__ == '__main__':
  main()
