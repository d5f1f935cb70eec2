"""Arrays, a table, a folder of images and an Arrow folder, each distilled.

  python docs/examples/your_data.py

Only the data differs: what people have is made here, in a temporary folder.
"""

import json
import pathlib
import tempfile

import numpy as np
from PIL import Image
import pyarrow

import haikd

SIZE = 240


def small_config():
  """Returns a config of a job of a second; the data is cut from one split."""
  config = haikd.config.base()
  config.steps = config.teacher.train.steps = config.evaluation.every = 60
  config.batch_size = 40
  config.optimizer.learning_rate = 0.05
  config.teacher.train.optimizer.learning_rate = 0.05
  config.teacher.options = dict(hidden=(32,))
  config.student.options = dict(hidden=(8,))
  config.data.train = 'train[:80%]'
  config.evaluation.split = 'train[80%:90%]'
  config.evaluation.final = 'train[90%:]'
  return config


def of_files(name, source_dir, **options):
  """Returns a config for files, as the command line takes them as well."""
  config = small_config()
  config.data.name = name
  config.data.source_dir = str(source_dir)
  config.data.options = options
  return config


def write(folder, x, animals):
  """Writes the same examples as a table, as images and as an Arrow folder."""
  rows = [f'{a},{b},{c},{animal}' for (a, b, c), animal in zip(x, animals)]
  (folder / 'animals.csv').write_text('\n'.join(['a,b,c,animal', *rows]))
  for i, (colour, animal) in enumerate(zip(x, animals)):
    (folder / 'images' / animal).mkdir(parents=True, exist_ok=True)
    pixel = tuple(int(256 * share) for share in colour)
    Image.new('RGB', (12 + i % 5, 10), pixel).save(
        folder / 'images' / animal / f'{i}.png')
  # As `Dataset.save_to_disk` of Hugging Face's datasets does.
  (folder / 'arrow').mkdir()
  names = sorted({*animals})
  table = pyarrow.table(dict(
      x=x.tolist(), label=[names.index(animal) for animal in animals]))
  feature = dict(_type='ClassLabel', names=names)
  table = table.replace_schema_metadata(
      {'huggingface': json.dumps(dict(info=dict(features=dict(
          label=feature))))})
  with pyarrow.ipc.new_stream(folder / 'arrow' / 'data.arrow',
                              table.schema) as writer:
    writer.write_table(table)
  (folder / 'arrow' / 'state.json').write_text(
      json.dumps(dict(_data_files=[dict(filename='data.arrow')])))


def main():
  """Returns the results of each kind of data."""
  folder = pathlib.Path(tempfile.mkdtemp())
  rng = np.random.default_rng(0)
  x = rng.random((SIZE, 3)).astype(np.float32)
  animals = np.array(['cat', 'dog', 'eel'])[x.argmax(axis=-1)]
  write(folder, x, animals)

  images = of_files('image_folder', folder / 'images')
  images.data.image_size = 4  # They have sizes of their own.
  data = haikd.data.from_arrays(train=dict(x=x, label=animals))
  results = dict(
      arrays=haikd.train(small_config(), folder / 'run_arrays', data=data),
      table=haikd.train(
          of_files('table', folder / 'animals.csv', label='animal'),
          folder / 'run_table'),
      images=haikd.train(images, folder / 'run_images'),
      arrow=haikd.train(of_files('table', folder / 'arrow'),
                        folder / 'run_arrow'))
  for name, scores in results.items():
    print(f'{name}: {scores["student"]["accuracy"]:.0%} right')
  student = haikd.load(folder / 'run_images')
  print(', '.join(student.class_names))
  return results


if __name__ == '__main__':
  main()
