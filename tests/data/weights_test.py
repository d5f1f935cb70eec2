"""The key `weight` of a data set."""

import numpy as np
import pytest

import haikd
from haikd import library  # noqa: F401  Registers all there is.
from haikd.core import checks
from haikd.data import arrays
from haikd.data import batches
from haikd.data import reader
from haikd.data.image import augmentations
from haikd.data.image import views


def columns(size=6, **changed):
  rng = np.random.default_rng(size)
  x = rng.normal(size=(size, 3)).astype(np.float32)
  return dict(dict(x=x, label=x.argmax(-1),
                   weight=np.arange(size) % 3 / 2), **changed)


def made(**changed):
  return reader.Reader(arrays.Arrays(columns(**changed), num_classes=3),
                       'train')


def test_an_example_of_weight_0_is_padding():
  evaluation = batches.Evaluation(
      made(), batch_size=8, shards=8,
      views=views.build_views(haikd.config.base()),
      process_index=0, process_count=1)
  batch = evaluation[0]
  assert batch.weight.dtype == np.float32
  np.testing.assert_array_equal(batch.weight, [0, 0.5, 1, 0, 0.5, 1, 0, 0])
  np.testing.assert_array_equal(batch.mask, batch.weight > 0)
  assert (batch.labels[batch.weight == 0] == -100).all()
  assert batch.inputs.shape == (8, 3)  # It is not an input.
  assert evaluation.spec.weight.shape == (8,)


@pytest.mark.parametrize('weight, match', (
    (np.float32([1, 2, -1, 0, 0, 0]), 'example 2 of split .train. must have a '
     'weight of 0 or more; got -1.0'),
    (np.full(6, np.nan), 'must have a finite weight; got nan'),
    (np.ones((6, 2)), r'must have one number as its weight; got .*\(2,\). Give '
     'one weight an example'),
    (np.ones(6, bool), 'must have a number as its weight; got .*bool'),
))
def test_weights_that_cannot_be_right_are_refused(weight, match):
  with pytest.raises(checks.DataError, match=match):
    made(weight=weight).load()


def test_weights_that_are_all_0_are_refused():
  """Else the loss is 0, whatever the networks say."""
  data = made(weight=np.zeros(6))
  for _ in range(2):
    with pytest.raises(checks.DataError, match="split 'train' must have an "
                       'example whose weight is above 0; got 0 for all 6'):
      data.load()


def test_mixed_images_have_no_weight():
  examples = dict(image=np.ones((2, 2, 2, 1), np.float32), weight=np.ones(2))
  with pytest.raises(checks.ConfigError, match='augment.mixup must be left out '
                     'where examples have weights'):
    augmentations.mixup(examples, np.random.default_rng(0), num_classes=2)


def test_weights_are_used_in_training_and_evaluation(tmp_path):
  """All that training could learn otherwise has weight 0, in every split."""
  config = haikd.config.base()
  config.steps = config.teacher.train.steps = 40
  config.batch_size = 32
  config.student.options = config.teacher.options = dict(hidden=(8,))
  config.optimizer.learning_rate = 0.05
  config.teacher.train.optimizer.learning_rate = 0.05
  rng = np.random.default_rng(0)
  x = rng.normal(size=(192, 3)).astype(np.float32)
  is_wrong = np.arange(192) % 2 == 1
  label = np.where(is_wrong, (x.argmax(-1) + 1) % 3, x.argmax(-1))
  split = dict(x=x, label=label, weight=np.where(is_wrong, 0.0, 3.0))
  results = haikd.train(config, tmp_path, data=haikd.data.from_arrays(
      train=split, validation=split, test=split))
  assert results['student']['accuracy'] > 0.8
  predicted = np.argmax(haikd.load(tmp_path).apply(x), -1)
  assert results['student']['accuracy'] == pytest.approx(
      np.mean((predicted == label)[~is_wrong]))
  assert np.mean(predicted == label) < 0.6
