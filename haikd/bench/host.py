"""haikd's side of the cases that read data, rather than take a step alone."""

from collections.abc import Callable, Iterator
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np
from PIL import Image

from haikd import config as config_lib
from haikd.bench import cases
from haikd.data import pipeline
from haikd.data import source
from haikd.engine import collectives

_WORDS, _LETTERS = 100_000, 9  # Words of texts, and their letters at most.


def build(case: cases.Case, path: pathlib.Path) -> tuple:
  """Writes the files of a case, which the other side reads too.

  Args:
    case: a complete case of images or texts.
    path: of a file; its folder gets the files.

  Returns:
    A function that does the work of a step, its state, and its other arguments.
  """
  if case['kind'] == cases.DECODING:
    write_images(path.parent, case)
    batches = read_images(path.parent, case)
    return lambda state: (state, dict(loss=_mean(next(batches)))), None, ()
  write_texts(path.parent, case)
  options = dict(tokenizer=str(path.parent), length=case['shape'][1])

  def prepare(state):
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
      opened = source.open_source(
          'text', 'train', options=options, source_dir=str(path.parent),
          data_dir=folder)
      return state, dict(loss=np.float32(opened.info['tokens']))

  return prepare, None, ()


def read_images(folder: pathlib.Path, case: cases.Case) -> Iterator[Any]:
  """Returns the batches of a case, forever.

  Args:
    folder: with its images.
    case: of the case.
  """
  return pipeline.build_data(_config(folder, case)).train()


def fed(train_step: Any, mesh: jax.sharding.Mesh, case: cases.Case,
        folder: pathlib.Path) -> Callable:
  """Returns a step that waits for its batch, which it reads from files.

  Args:
    train_step: of the program.
    mesh: where it runs.
    case: of the case.
    folder: where its images are written.
  """
  write_images(folder, case)
  return Fed(train_step, mesh, read_images(folder, case))


class Fed:
  """A training step and the data that it waits for.

  Args:
    train_step: of the program.
    mesh: where it runs.
    batches: of the data.
  """

  def __init__(self, train_step: Any, mesh: jax.sharding.Mesh,
               batches: Iterator[Any]):
    self._step, self._mesh, self._batches = train_step, mesh, batches
    self.trace, self.lower = train_step.trace, train_step.lower

  def __call__(self, state: Any, frozen: Any, batch: Any) -> tuple[Any, Any]:
    """Takes a step on the next batch rather than on a given one."""
    begin = time.perf_counter()
    batch = collectives.shard_batch(self._mesh, next(self._batches))
    waiting = time.perf_counter() - begin
    state, metrics = self._step(state, frozen, batch)
    return state, dict(metrics, waiting=waiting)


def write_images(folder: pathlib.Path, case: cases.Case) -> None:
  """Writes smooth random images as JPEG files.

  Args:
    folder: below which they are, in `train/<class>`.
    case: of the case.
  """
  rng, side = np.random.RandomState(0), case['side']
  for number in range(case['files']):
    small = rng.randint(0, 256, (8, 8, 3)).astype(np.uint8)
    place = folder / 'train' / f'{number % case["classes"]:03}'
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(
        place / f'{number}.jpg', quality=90)


def write_texts(folder: pathlib.Path, case: cases.Case) -> None:
  """Writes random texts, and a tokenizer that was trained on them.

  Args:
    folder: of `train.jsonl` and `tokenizer.json`.
    case: of the case.
  """
  import tokenizers  # An extra.
  rng = np.random.RandomState(0)
  letters = rng.choice(list('etaoinshrdlucmfw'), (_WORDS, _LETTERS))
  sizes = rng.randint(2, _LETTERS + 1, _WORDS)
  words = [''.join(word[:size]) for word, size in zip(letters, sizes)]
  ranks = np.arange(1, _WORDS + 1)
  drawn = rng.choice(
      words, (case['shape'][0], case['words']), p=_share(1 / ranks))
  texts = [' '.join(text) for text in drawn]
  trained = tokenizers.ByteLevelBPETokenizer()
  trained.train_from_iterator(
      texts[:400], vocab_size=case['classes'], special_tokens=['<eos>'],
      show_progress=False)
  trained.save(str(folder / 'tokenizer.json'))
  with open(folder / 'train.jsonl', 'w', encoding='utf-8') as file:
    file.writelines(json.dumps(dict(text=text)) + '\n' for text in texts)


def _config(folder, case):
  config = config_lib.base()
  config.batch_size = case['shape'][0]
  config.data.prefetch = 1  # What a round has read for the next is little.
  config.data.workers = 0  # The time of other processes is not measured.
  config.data.name, config.data.source_dir = 'image_folder', str(folder)
  config.data.image_size = case['shape'][1]
  config.data.augment = dict(random_resized_crop={}, flip={})
  config.data.mean, config.data.std = case['mean'], case['std']
  config.evaluation.split = config.evaluation.final = 'train'
  return config


def _mean(batch):
  return np.float32(batch.view('student').inputs[0, 0, 0].mean())


def _share(values):
  return values / values.sum()
