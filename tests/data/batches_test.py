"""Which examples are in a batch, shown by examples that are numbers."""

import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.data import arrays
from haikd.data import batches
from haikd.data import reader
from haikd.data.image import augment
from haikd.data.image import views

AS_THEY_ARE = views.build_views(config_lib.base())


def numbered(size, **more):
  """Returns a reader of examples that are their own index."""
  columns = dict(number=np.arange(size), **more)
  return reader.Reader(arrays.Arrays(columns, num_classes=10), 'train')


def training(size, *, batch_size, seed=0, index=0, count=1):
  return batches.Training(
      numbered(size),
      augment.build_augment({}, None),
      batch_size=batch_size,
      seed=seed,
      process_index=index,
      process_count=count,
      views=AS_THEY_ARE)


def draws(number, *, seed=0, index=0):
  """Returns a random number that the augmentation of a batch draws."""
  stage = batches.Training(
      numbered(12),
      lambda examples, rng: dict(number=rng.random((6, 1))),
      batch_size=12,
      seed=seed,
      process_index=index,
      process_count=2,
      views=AS_THEY_ARE)
  return float(stage[number].inputs[0, 0])


def evaluation(data, *, batch_size, shards=1, index=0, count=1):
  return batches.Evaluation(
      data,
      batch_size=batch_size,
      shards=shards,
      process_index=index,
      process_count=count,
      views=AS_THEY_ARE)


def stream(size, epochs, **options):
  """Returns the numbers of full epochs; batches must divide them."""
  stage = training(size, **options)
  count = size * epochs // options['batch_size']
  return np.concatenate([stage[i].inputs for i in range(count)])


def test_every_epoch_has_each_example_once():
  epochs = stream(12, 3, batch_size=4).reshape(3, 12)
  for epoch in epochs:
    assert sorted(epoch) == list(range(12))


def test_every_epoch_has_its_own_order():
  first, second, third = stream(12, 3, batch_size=4).reshape(3, 12).tolist()
  assert first != second != third != first
  assert first != list(range(12))


def test_batches_go_on_across_the_end_of_an_epoch():
  # 5 examples in batches of 3: 15 batches are 9 epochs, cut inside batches too.
  stage = training(5, batch_size=3)
  numbers = np.concatenate([stage[i].inputs for i in range(15)])
  assert numbers.shape == (45,)
  for epoch in numbers.reshape(9, 5):
    assert sorted(epoch) == list(range(5))


def test_a_batch_may_be_the_full_split():
  stage = training(4, batch_size=4)
  assert sorted(stage[7].inputs) == [0, 1, 2, 3]


@pytest.mark.parametrize('count', [1, 2, 3])
def test_processes_share_the_batch_of_one_process(count):
  alone = training(17, batch_size=6)
  shares = [training(17, batch_size=6, index=i, count=count)
            for i in range(count)]
  for number in range(10):
    joined = np.concatenate([share[number].inputs for share in shares])
    np.testing.assert_array_equal(joined, alone[number].inputs)


def test_seeds_have_different_orders():
  assert (stream(12, 1, batch_size=4, seed=1).tolist() !=
          stream(12, 1, batch_size=4, seed=2).tolist())


def test_augmentation_draws_anew_for_each_batch_process_and_seed():
  drawn = [draws(0), draws(1), draws(0, index=1), draws(0, seed=1)]
  assert len(set(drawn)) == 4
  assert draws(0) == drawn[0]


def test_order_depends_on_the_batch_number_alone():
  forwards, backwards = (training(50, batch_size=8) for _ in range(2))
  expected = [forwards[i].inputs for i in range(20)]
  for i in reversed(range(20)):
    np.testing.assert_array_equal(backwards[i].inputs, expected[i])


@pytest.mark.parametrize('size, batch_size', [(10, 4), (8, 4), (3, 4), (1, 4),
                                              (5, 1)])
@pytest.mark.parametrize('count', [1, 2, 3])
def test_evaluation_has_each_example_once(size, batch_size, count):
  seen, lengths = [], set()
  for index in range(count):
    stage = evaluation(
        numbered(size), batch_size=batch_size, index=index, count=count)
    parts = [stage[i] for i in range(len(stage))]
    lengths.add((len(parts), *{part.mask.shape for part in parts}))
    for part in parts:
      seen.extend(part.inputs[part.mask])
  assert sorted(seen) == list(range(size))
  assert len(lengths) == 1  # Each process has as many batches, of one shape.


@pytest.mark.parametrize('size, batch_size, shards, expected', [
    (64, 512, 8, [64]),  # Not 448 examples of padding.
    (65, 512, 8, [72]),
    (600, 512, 1, [300, 300]),
    (10, 4, 3, [6, 6]),  # 3 does not divide 4; the next multiple is 6.
    (33, 16, 8, [16, 16, 16]),
    (5, 1, 1, [1] * 5),
])
def test_batches_of_evaluation_are_no_larger_than_needed(size, batch_size,
                                                         shards, expected):
  stage = evaluation(numbered(size), batch_size=batch_size, shards=shards)
  assert [len(stage[i].mask) for i in range(len(stage))] == expected
  assert sum(stage[i].mask.sum() for i in range(len(stage))) == size


def test_padding_is_masked_and_unlabelled():
  data = numbered(3, label=np.array([5, 6, 7]))
  part = evaluation(data, batch_size=4, shards=4)[0]
  assert part.mask.tolist() == [True, True, True, False]
  assert part.labels.tolist() == [5, 6, 7, -100]


def test_padding_masks_all_positions_of_sequences():
  mask = np.array([[True, True], [True, False], [True, True]])
  data = numbered(3, mask=mask, target_mask=mask[:, ::-1])
  part = evaluation(data, batch_size=4, shards=4)[0]
  assert part.mask.tolist() == [*mask.tolist(), [False, False]]
  assert part.target_mask.tolist() == [*mask[:, ::-1].tolist(), [False, False]]


def test_evaluation_keeps_the_order_of_the_split():
  stage = evaluation(numbered(5), batch_size=2)
  assert [stage[i].inputs.tolist() for i in range(2)] == [[0, 1], [2, 3]]


def one(columns, *, num_classes=10, mean=0.0, std=1.0):
  data = reader.Reader(arrays.Arrays(columns, num_classes=num_classes), 'test')
  config = config_lib.base()
  config.data.mean, config.data.std = mean, std
  return batches.Evaluation(
      data, batch_size=1, shards=1, views=views.build_views(config),
      process_index=0, process_count=1)[0]


def test_bytes_of_an_image_become_standardised_floats():
  image = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1)
  part = one(dict(image=image), mean=0.5, std=0.25)
  assert part.inputs.dtype == np.float32
  # 51 / 255 = 0.2; (0 - .5) / .25, (.2 - .5) / .25, (1 - .5) / .25.
  np.testing.assert_allclose(np.ravel(part.inputs), [-2, -1.2, 2], rtol=1e-6)


def test_an_image_of_floats_is_standardised_and_not_divided():
  image = np.array([0.5, 1.0]).reshape(1, 1, 2, 1)
  part = one(dict(image=image), mean=0.5, std=0.25)
  assert part.inputs.ravel().tolist() == [0, 2]


def test_one_input_is_passed_as_it_is_and_several_as_a_dict():
  tokens, kind = np.zeros((1, 3), np.int64), np.ones((1, 2), np.float64)
  assert one(dict(tokens=tokens)).inputs.shape == (1, 3)
  inputs = one(dict(tokens=tokens, kind=kind)).inputs
  assert {key: value.dtype for key, value in inputs.items()} == dict(
      tokens=np.int32, kind=np.float32)


def test_absent_fields_are_none():
  part = one(dict(tokens=np.zeros((1, 3), np.int32)))
  assert part == base.Batch(part.inputs, part.mask)
  assert part.mask.shape == (1,)
