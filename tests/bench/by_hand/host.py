"""The work of a data pipeline with the library alone that it rests on."""

import itertools
import json
import pathlib

import numpy as np
from PIL import Image


def images(case, folder):
  """Returns what decodes, crops, flips and scales a batch with PIL.

  Args:
    case: of decoding.
    folder: with the files.

  Returns:
    A function of the state, its state, and no other arguments.
  """
  rng = np.random.default_rng(0)
  size, side, *_ = case['shape']
  paths = itertools.cycle(sorted((folder / 'train').rglob('*.jpg')))
  mean, std = np.float32(case['mean']), np.float32(case['std'])

  def read(path):
    with Image.open(path) as image:
      image = image.convert('RGB')
    width, height = image.size
    cut = width * rng.uniform(0.08, 1)**0.5
    x, y = rng.uniform(0, width - cut), rng.uniform(0, height - cut)
    image = image.resize((side, side), Image.Resampling.BILINEAR,
                         box=(x, y, x + cut, y + cut))
    if rng.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)

  def step(state):
    batch = np.stack([read(path) for path in itertools.islice(paths, size)])
    batch = (batch.astype(np.float32) / 255 - mean) / std
    return state, dict(loss=batch[0, 0, 0].mean())

  return step, None, ()


def texts(case, folder):
  """Returns what encodes the texts of a file with `tokenizers`.

  Args:
    case: of preparation.
    folder: with the texts and the tokenizer.

  Returns:
    As `images`.
  """
  import tokenizers
  del case
  with open(pathlib.Path(folder, 'train.jsonl'), encoding='utf-8') as file:
    lines = [json.loads(line)['text'] for line in file]

  def step(state):
    # It learns words: each preparation begins with one that knows none.
    loaded = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    count = sum(map(len, loaded.encode_batch_fast(lines)))
    return state, dict(loss=np.float32(count))

  return step, None, ()
