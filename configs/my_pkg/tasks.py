"""Data sets of tasks that are not classification, and a network for scenes.

scikit-learn makes or carries all of the data.
"""

import haiku as hk
import jax
import numpy as np
from sklearn import datasets

import haikd
from haikd import data

SIZES = dict(train=1000, validation=500, test=2000)


def cut(columns, **options):
  """Returns columns of all splits, one after the other, as a data set."""
  ends = np.cumsum([0, *SIZES.values()])
  return data.from_arrays(**options, **{
      split: {key: value[start:end] for key, value in columns.items()}
      for split, start, end in zip(SIZES, ends, ends[1:])})


@haikd.register_dataset(tasks=('regression',))
def friedman(split):
  """Ten inputs, five of which matter, and a noisy number (Friedman, 1991)."""
  x, y = datasets.make_friedman1(sum(SIZES.values()), noise=1.0, random_state=0)
  # Standardised by what is known of the function: the mean and the deviation.
  return cut(dict(x=x.astype(np.float32),
                  label=((y - 14.4) / 5).astype(np.float32)))(split)


@haikd.register_dataset(tasks=('multilabel',))
def documents(split):
  """Counts of 40 words in a document on none, one or several of 8 topics."""
  x, y = datasets.make_multilabel_classification(
      sum(SIZES.values()), n_features=40, n_classes=8, n_labels=3, length=30,
      random_state=0)
  return cut(dict(x=np.log1p(x).astype(np.float32),
                  label=y.astype(np.float32)))(split)


@haikd.register_dataset(tasks=('dense',))
def scenes(split):
  """Four digits in noise, 16 x 16; a place has the digit's class, or 10."""
  digits = datasets.load_digits()
  rng = np.random.default_rng(0)
  size = sum(SIZES.values())
  held_out = np.arange(len(digits.images)) % 3 == 0
  train, rest = np.flatnonzero(~held_out), np.flatnonzero(held_out)
  chosen = np.concatenate([rng.choice(train, (SIZES['train'], 4)),
                           rng.choice(rest, (size - SIZES['train'], 4))])
  ink = digits.images[chosen] / 16
  classes = np.where(ink > 0.3, digits.target[chosen][..., None, None], 10)
  image = _tile(ink) + rng.normal(0, 0.3, (size, 16, 16))
  return cut(dict(image=image[..., None].astype(np.float32),
                  label=_tile(classes)), num_classes=11)(split)


@haikd.register_model(taps=dict(features='layer_*'), task='dense')
def fully_convolutional(image, *, is_training, num_classes, channels=(16, 16)):
  """Convolutions of 5 x 5 that keep the size, and a class for each place."""
  del is_training
  for i, size in enumerate(channels):
    image = jax.nn.relu(hk.Conv2D(size, 5, name=f'layer_{i}')(image))
  return hk.Conv2D(num_classes, 1, name='logits')(image)


def _tile(values):
  """Returns four squares of 8 x 8 as one, `[B, 16, 16]`."""
  rows = [np.concatenate([values[:, i], values[:, i + 1]], axis=2)
          for i in (0, 2)]
  return np.concatenate(rows, axis=1)
