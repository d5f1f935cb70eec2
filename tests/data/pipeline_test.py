"""From a config to batches."""

import copy
import itertools
import json

import jax
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import registry
from haikd.data import arrays
from haikd.data import description
from haikd.data import pipeline
from haikd.data import reader
from haikd.data import source
from haikd.data import spec as spec_lib

AUGMENT = dict(shift={}, noise={}, mixup=dict(alpha=0.5))


def make_config(**data):
  config = config_lib.base()
  config.batch_size = 8
  config.evaluation.batch_size = 16
  config.data.name = 'synthetic'
  config.data.options = dict(size=20, num_classes=4)
  for field, value in data.items():
    config.data[field] = value
  config_lib.validate(config)
  return config


def build(config, index=0, count=1):
  return pipeline.build_data(config, process_index=index, process_count=count)


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def assert_same(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(params=['in_memory', 'from_files'])
def kept(request, monkeypatch):
  """Runs a test on a split that is cached, and on one read when needed."""
  if request.param == 'from_files':
    monkeypatch.setattr(reader.Reader, 'load', lambda self: None)


def test_training_batches_are_full_and_real():
  for batch in take(build(make_config()).train(), 6):
    assert batch.inputs.shape == (8, 8, 8, 1)
    assert batch.inputs.dtype == np.float32
    assert batch.labels.shape == (8,) and batch.labels.dtype == np.int32
    assert batch.mask.all() and batch.target_mask is None


@pytest.mark.parametrize('augment', [{}, AUGMENT])
def test_two_runs_see_the_same(kept, augment):
  config = make_config(augment=augment)
  assert_same(take(build(config).train(), 7), take(build(config).train(), 7))


def test_another_seed_sees_another_order():
  config = make_config()
  first = next(build(config).train())
  config.seed = 1
  other = next(build(config).train())
  assert (first.inputs.values != other.inputs.values).any()


@pytest.mark.parametrize('taken', [0, 1, 4])  # An epoch ends within batch 2.
@pytest.mark.parametrize('augment', [{}, AUGMENT])
def test_resumed_run_goes_on_bit_for_bit(kept, taken, augment):
  config = make_config(augment=augment)
  iterator = build(config).train()
  take(iterator, taken)
  state = json.loads(json.dumps(iterator.get_state()))
  expected = take(iterator, 5)
  resumed = build(config).train()
  resumed.set_state(state)
  assert_same(take(resumed, 5), expected)


def test_state_may_be_set_in_the_middle():
  iterator = build(make_config()).train()
  take(iterator, 3)
  state = copy.deepcopy(iterator.get_state())
  expected = take(iterator, 4)
  iterator.set_state(state)
  assert_same(take(iterator, 4), expected)


@pytest.mark.parametrize('count', [1, 2, 4])
def test_processes_share_every_batch(kept, count):
  config = make_config()
  alone = take(build(config).train(), 6)
  shares = [take(build(config, index, count).train(), 6)
            for index in range(count)]
  joined = [jax.tree.map(lambda *a: np.concatenate(a), *batch)
            for batch in zip(*shares)]
  assert_same(joined, alone)


@pytest.mark.parametrize('count', [1, 2, 3])
def test_evaluation_sees_each_example_once(kept, count):
  config = make_config()
  config.batch_size = 12
  everything = source.open_source(
      'synthetic', 'validation', options=config.data.options.to_dict())
  parts = [list(build(config, index, count).evaluation('validation'))
           for index in range(count)]
  assert len({(len(part), *(b.inputs.shape for b in part))
              for part in parts}) == 1
  seen = np.concatenate([b.inputs.values[b.mask]
                         for part in parts for b in part])
  expected = everything.columns['image']
  assert (sorted(image.tobytes() for image in seen) ==
          sorted(image.tobytes() for image in expected))


def test_evaluation_may_be_repeated_and_is_not_augmented():
  config = make_config(augment=AUGMENT)
  validation = build(config).evaluation('validation')
  assert_same(list(validation), list(validation))
  config.data.augment = {}
  assert_same(list(validation), list(build(config).evaluation('validation')))


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('data', [
    {}, dict(augment=AUGMENT),
    dict(options=dict(kind='tokens', size=20, length=5)),
])
def test_spec_is_the_global_training_batch(data, count):
  config = make_config()
  for field, value in data.items():
    config.data[field] = value
  built = build(config, 0, count)
  batch = next(built.train())
  assert jax.tree.structure(built.spec) == jax.tree.structure(batch)
  for spec, array in zip(jax.tree.leaves(built.spec), jax.tree.leaves(batch)):
    assert spec.shape == (8, *array.shape[1:]) and spec.dtype == array.dtype
    assert array.shape[0] == 8 // count


def test_mixup_makes_labels_of_probabilities():
  spec = build(make_config(augment=AUGMENT)).spec
  assert spec.labels.shape == (8, 4) and spec.labels.dtype == np.float32


def test_sizes_and_classes_are_those_of_the_data():
  built = build(make_config())
  assert built.sizes == dict(train=20, validation=20, test=20)
  assert built.num_classes == 4


def test_images_are_standardised_after_augmentation():
  # Zeros that a shift fills in are black: the mean is subtracted afterwards.
  config = make_config(augment=dict(shift=dict(pixels=7)), mean=0.5, std=0.25)
  assert np.min(next(build(config).train()).inputs) == -2


def test_sequences_have_masks_and_shifted_labels():
  config = make_config()
  config.data.options = dict(kind='tokens', size=20, length=6, vocabulary=9)
  batch = next(build(config).train())
  assert batch.mask.shape == batch.target_mask.shape == batch.labels.shape
  np.testing.assert_array_equal(batch.labels[batch.target_mask],
                                (3 * batch.inputs[batch.target_mask] + 1) % 9)
  built = pipeline.build_data(config, shards=8)
  last, = list(built.evaluation('test'))[1:]  # 20 examples are 16 and 4.
  assert last.mask.any(1).tolist() == [True] * 4 + [False] * 12
  assert (last.labels[4:] == -100).all() and not last.target_mask[4:].any()


class Listed(list):
  """A Source that counts its reads."""
  num_classes = 3
  reads = 0

  def __getitem__(self, index):
    self.reads += 1
    return super().__getitem__(index)


@pytest.fixture
def listed():
  """A user's data set, as a list of examples."""
  examples = Listed(dict(x=np.float32([i]), label=i % 3) for i in range(20))
  with registry.datasets.temporary():
    registry.register_dataset('listed')(lambda split: examples)
    yield examples


def listed_config():
  config = make_config()
  config.data.options = {}
  config.data.name = 'listed'
  return config


def test_labels_of_training_say_what_those_of_other_splits_are():
  """The first 256 held-out labels have one class each, and so tell nothing."""
  labels = np.eye(3, dtype=np.float32)[np.arange(300) % 3]
  held_out = labels.copy()
  held_out[280] = 1
  splits = dict(train=1 - labels, validation=held_out, test=held_out)

  def several(split):
    return Listed(dict(x=np.float32([0]), label=x) for x in splits[split])

  with registry.datasets.temporary():
    registry.register_dataset('listed')(several)
    built = build(listed_config())
    built.check()
    assert built.task == 'multilabel'
    batch, = itertools.islice(built.evaluation('validation'), 1)
    assert batch.labels.dtype == np.float32
    splits['train'] = labels
    with pytest.raises(checks.DataError, match="set config.task='multilabel'"):
      build(listed_config()).check()


def test_nothing_is_read_until_it_is_needed(listed):
  built = build(listed_config())
  assert built.num_classes == 3 and built.sizes['train'] == 20
  assert listed.reads == 0
  assert built.spec.inputs.shape == (8, 1)
  assert listed.reads == 1


def test_error_in_a_thread_is_raised_unchanged(listed, monkeypatch):
  monkeypatch.setattr(reader, 'CACHE_BYTES', 0)
  listed.append(dict(x=np.float32([np.nan]), label=0))
  with pytest.raises(checks.DataError,
                     match="^example 20 of split 'train' must have a finite x"):
    take(build(listed_config()).train(), 3)


def test_check_reads_each_split_once(listed):
  built = build(listed_config())
  built.check()
  reads = listed.reads
  assert reads == 3 * 21  # The first example twice, to find its size.
  next(built.train())
  list(built.evaluation('validation'))
  assert listed.reads == reads


@pytest.mark.parametrize('field', ['split', 'final'])
def test_check_finds_a_bad_example_of_a_held_out_split(field):
  config = listed_config()
  config.evaluation[field] = 'bad'

  def spoilt(split):
    image = np.ones((20, 2))
    if split == 'bad':
      image[11, 1] = np.nan
    return arrays.Arrays(dict(x=image, label=[0] * 20), num_classes=2)

  with registry.datasets.temporary():
    registry.register_dataset('listed')(spoilt)
    with pytest.raises(checks.DataError,
                       match="example 11 of split 'bad' must have a finite x"):
      build(config).check()


@pytest.mark.parametrize('field', ['split', 'final'])
def test_check_finds_an_unknown_split(field):
  config = make_config()
  config.evaluation[field] = 'valid'
  with pytest.raises(
      checks.DataError,
      match=f'config.evaluation.{field} must name a split of the data set; got '
      "'valid'. Did you mean"):
    build(config).check()


def test_unknown_split_of_training_is_named_by_its_field():
  config = make_config(train='trian')
  config.evaluation.final = 'trian'
  with pytest.raises(checks.DataError,
                     match="config.data.train must name a split .* 'trian'"):
    build(config).check()


def test_check_finds_a_split_smaller_than_a_batch():
  config = make_config()
  config.batch_size = 21
  with pytest.raises(checks.DataError, match='Set config.batch_size to 20'):
    build(config).check()


@pytest.mark.parametrize('field, value', [
    ('mean', (0.1, 0.2)), ('std', (1.0, 1.0, 1.0)), ('std', (2.0, 1.0))])
def test_check_finds_a_scale_for_another_number_of_channels(field, value):
  config = make_config(**{field: value})
  config.data.options.shape = (8, 8, 3) if len(value) == 2 else (8, 8, 1)
  with pytest.raises(checks.ConfigError,
                     match=rf'config.data.{field} must be .*got {len(value)}'):
    build(config).check()


def test_same_data_set_is_decoded_once_for_all(listed):
  config = listed_config()
  first = build(config)
  first.check()
  reads = listed.reads
  config.seed, config.batch_size = 3, 4
  second = pipeline.build_data(config, like=first)
  second.check()
  assert next(second.train()).mask.shape == (4,)
  assert listed.reads == reads


def test_another_data_set_is_not_shared():
  first = build(make_config())
  second = pipeline.build_data(
      make_config(options=dict(size=30, num_classes=4)), like=first)
  assert (first.sizes['train'], second.sizes['train']) == (20, 30)


def test_augmentations_are_named_by_their_field():
  config = make_config(augment=dict(shift=2))
  with pytest.raises(checks.ConfigError,
                     match='config.teacher.train.augment.shift must be a dict'):
    pipeline.build_data(config, augment_field='config.teacher.train.augment')


def test_bad_example_is_found_before_the_first_step(listed):
  listed.append(dict(x=np.float32([0]), label=3))
  with pytest.raises(checks.DataError, match="example 20 of split 'train'"):
    build(listed_config()).train()


def test_split_smaller_than_a_batch_is_refused_for_training():
  config = make_config()
  config.batch_size = 21
  with pytest.raises(
      checks.DataError,
      match='config.data.train must name a split of at least one batch; got '
      "'train' of size=20, config.batch_size=21. Set config.batch_size to 20"):
    build(config).train()


def test_unknown_split_is_refused():
  with pytest.raises(
      checks.DataError,
      match="split must name a split of the data set; got 'valid'. Did you me"):
    build(make_config()).evaluation('valid')


def test_batch_must_be_shared_evenly():
  with pytest.raises(
      checks.ConfigError,
      match='config.batch_size must be a multiple of the number of processes; '
      'got 8, process_count=3. The next multiple is 9'):
    build(make_config(), 0, 3)


def test_unknown_augmentation_is_refused_at_once():
  config = make_config(augment=dict(mixpu={}))
  with pytest.raises(checks.ConfigError, match="Did you mean 'mixup'"):
    build(config)


def test_digits_come_as_images(tmp_path):
  config = make_config(name='digits', options={}, data_dir=str(tmp_path))
  built = build(config)
  assert built.sizes == dict(train=897, validation=300, test=600)
  batch = next(built.train())
  assert batch.inputs.shape == (8, 8, 8, 1)
  assert 0 <= np.min(batch.inputs) and np.max(batch.inputs) <= 1


def test_teacher_and_student_see_one_view():
  # Consistent teaching needs one view: image and label are mixed once, alike.
  config = make_config(augment=dict(mixup={}))
  batch = next(build(config).train())
  assert batch.inputs.ndim == 4 and batch.labels.shape == (8, 4)
  np.testing.assert_allclose(batch.labels.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize('data', [
    {}, dict(augment=AUGMENT),
    dict(options=dict(num_classes=3, shape=(5, 4, 3))),
    dict(options=dict(kind='tokens', length=5, vocabulary=7)),
    dict(image_size=6),
])
def test_description_is_that_of_the_data_and_reads_no_example(
    data, monkeypatch):
  config = make_config(**data)
  built = build(config)
  expected = built.spec, built.num_classes, None  # No label was read.
  monkeypatch.setattr(source, 'open_source', None)
  assert description.describe(config) == expected


def test_data_without_a_spec_is_described_by_its_first_example(listed):
  spec, num_classes, _ = description.describe(listed_config())
  assert spec.inputs.shape == (8, 1) and spec.labels.shape == (8,)
  assert num_classes == 3 and listed.reads == 1


@pytest.mark.parametrize('augment, labels', [
    (dict(random_resized_crop={}, flip={}), (8,)),
    (dict(random_resized_crop={}, mixup={}), (8, 1000)),
])
def test_imagenet_is_described_without_its_files(tmp_path, augment, labels):
  config = make_config(name='imagenet2012', options={}, image_size=224,
                       augment=augment, data_dir=str(tmp_path))
  batch, num_classes, _ = description.describe(config)
  assert num_classes == 1000 and batch.labels.shape == labels
  assert batch.inputs.shape == (8, 224, 224, 3)
  assert batch.inputs.dtype == np.float32
  assert not list(tmp_path.iterdir())


@pytest.fixture
def pictures():
  """A user's data set of images of free size, registered with a spec."""

  def spec(*, classes=5):
    columns = dict(
        image=spec_lib.Column((None, None, 3), np.uint8),
        label=spec_lib.Column((), np.int32))
    return spec_lib.Spec(columns, classes)

  def unopened(split, *, classes=5):
    raise AssertionError('The data must not be opened.')

  with registry.datasets.temporary():
    registry.register_dataset('pictures', spec=spec)(unopened)
    yield


@pytest.mark.parametrize('augment, labels', [
    (dict(random_resized_crop={}, flip={}), (8,)), (dict(mixup={}), (8, 7))])
def test_registered_spec_may_leave_the_size_of_images_free(
    pictures, augment, labels):
  config = make_config(name='pictures', options=dict(classes=7), image_size=6,
                       augment=augment)
  batch, num_classes, _ = description.describe(config)
  assert num_classes == 7 and batch.labels.shape == labels
  assert batch.inputs.shape == (8, 6, 6, 3)
  assert batch.inputs.dtype == np.float32


@pytest.mark.parametrize('name', ['imagenet2012', 'pictures'])
def test_images_of_free_size_are_refused_without_an_image_size(
    pictures, tmp_path, name):
  data_dir = str(tmp_path) if name == 'imagenet2012' else None
  config = make_config(name=name, options={}, data_dir=data_dir)
  with pytest.raises(checks.ConfigError, match=(
      rf"image must have one size in all examples of '{name}'; got shape="
      r'\(None, None, 3\). Set config.data.image_size')):
    description.describe(config)
