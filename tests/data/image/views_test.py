"""Teacher and student may see an image in a size and scaling of their own.

Expected images are Pillow's, resized in one call for all channels.
"""

import json
import re

import numpy as np
from PIL import Image
import pytest

import haikd
from haikd import library  # noqa: F401  Registers all there is.
from haikd.core import checks
from haikd.core import registry
from haikd.data import pipeline

FEW = dict(**{'teacher.train.steps': 3}, steps=3, log_every=3)


class Ramps(list):
  """Images whose columns rise from left to right, and whose rows are alike."""
  num_classes = 3


def ramps():
  row = np.arange(0, 200, 10, dtype=np.uint8)
  return Ramps(
      dict(image=np.broadcast_to((row + i)[None, :, None], (20, 20, 1)),
           label=i % 3) for i in range(8))


def config_of(**fields):
  config = haikd.config.base()
  config.update_from_flattened_dict({
      'data.name': 'ramps', 'batch_size': 8, 'student.model': 'mlp',
      'teacher.model': 'mlp', **FEW, **fields})
  haikd.config.validate(config)
  return config


@pytest.fixture(autouse=True)
def data():
  with registry.datasets.temporary():
    registry.register_dataset('ramps')(lambda split: ramps())
    yield


def by_pillow(image, size, crop):
  side = image.shape[0] * crop
  edge = (image.shape[0] - side) / 2
  resized = Image.fromarray(image[..., 0]).resize(
      (size, size), Image.Resampling.BILINEAR,
      box=(edge, edge, edge + side, edge + side))
  return np.asarray(resized)[..., None]


def test_scaling_of_ones_own():
  config = config_of(**{'data.mean': 0.25, 'data.std': 0.5,
                        'teacher.view.mean': (0.5,), 'teacher.view.std': 0.125})
  made = pipeline.build_data(config)
  batch, = made.evaluation('test')
  pixels = np.stack([x['image'] for x in ramps()]) / np.float32(255)
  np.testing.assert_allclose(batch.student.inputs, (pixels - 0.25) / 0.5,
                             rtol=1e-6)
  np.testing.assert_allclose(batch.inputs, (pixels - 0.5) / 0.125, rtol=1e-6)
  assert made.spec.student.inputs.shape == (8, 20, 20, 1)
  np.testing.assert_array_equal(batch.student.mask, batch.mask)


@pytest.mark.parametrize('student, teacher', ((4, 10), (10, 4)))
def test_evaluation_resizes_each_from_the_original(student, teacher):
  config = config_of(**{
      'data.image_size': student, 'teacher.view.image_size': teacher,
      'teacher.view.crop': 1.0})
  batch, = pipeline.build_data(config).evaluation('test')
  for i, example in enumerate(ramps()):
    for view, size, crop in ((batch.student, student, 0.875),
                             (batch, teacher, 1.0)):
      np.testing.assert_allclose(
          np.asarray(view.inputs)[i],
          by_pillow(example['image'], size, crop) / 255, rtol=1e-6)


@pytest.mark.parametrize('student, teacher', ((4, 8), (8, 4)))
def test_training_shows_both_the_same_part_and_the_same_side(student, teacher):
  """The smaller image is Pillow's of the larger one, flipped or not."""
  config = config_of(**{
      'data.image_size': student, 'teacher.view.image_size': teacher})
  config.data.augment = dict(random_resized_crop={}, flip={})
  made = pipeline.build_data(config)
  batch = next(made.train())
  assert batch.inputs.shape == made.spec.inputs.shape == (8, teacher, teacher,
                                                          1)
  small, large = sorted(
      (batch.inputs.values, batch.student.inputs.values),
      key=lambda x: x.shape[1])
  for shrunk, image in zip(small, large):
    expected = Image.fromarray(image[..., 0]).resize(
        (4, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(shrunk[..., 0], expected)
  rising = [image[0, -1, 0] > image[0, 0, 0] for image in small]
  assert 0 < sum(rising) < 8  # The seed flips some.


@pytest.mark.parametrize('fields, match', (
    ({'teacher.view.image_size': 8}, 'teacher.view.image_size must be None '
     'unless config.data.image_size is set'),
    ({'teacher.view.mean': (0.5, 0.5)}, 'config.teacher.view.mean must be a '
     'number, or one for each channel'),
    ({'teacher.view.std': 0.0}, 'config.teacher.view.std must be None or abov'),
    ({'teacher.view.crop': 1.5}, 'config.teacher.view.crop must be None, or'),
    ({'data.crop': 0.0}, 'config.data.crop must be above 0 and at most 1')))
def test_views_that_cannot_be_are_refused(fields, match):
  with pytest.raises(checks.ConfigError, match=re.escape(match)):
    pipeline.build_data(config_of(**fields)).check()


def test_a_view_is_refused_beside_what_is_the_students_own():
  own = Ramps({**x, 'student/x': np.zeros(3, np.float32)} for x in ramps())
  with registry.datasets.temporary():
    registry.register_dataset('ramps', replace=True)(lambda split: own)
    with pytest.raises(checks.ConfigError, match='view must be left out where'):
      pipeline.build_data(config_of(**{'teacher.view.mean': 0.5})).check()


def test_a_view_needs_images():
  numbers = Ramps(dict(x=np.zeros(3, np.float32), label=0) for _ in range(8))
  with registry.datasets.temporary():
    registry.register_dataset('ramps', replace=True)(lambda split: numbers)
    with pytest.raises(checks.ConfigError, match=(
        'config.teacher.view must be left out unless examples have the key '
        "image; got the keys .'label', 'x'")):
      pipeline.build_data(config_of(**{'teacher.view.mean': 0.5})).check()


def test_a_teacher_in_its_own_view_by_the_command_line(run, tmp_path):
  """It predicts the same in its training, beside its student, and loaded."""
  view = ['--config.data.name=digits', '--config.data.options={}',
          '--config.data.image_size=8', '--config.teacher.train.steps=60',
          '--config.data.crop=1.0', '--config.teacher.view.image_size=16',
          '--config.teacher.view.mean=0.3', '--config.teacher.view.std=0.4']
  code, out, err = run(*view, workdir='first')
  assert code == 0, err
  results = json.loads((tmp_path / 'first/result.json').read_text())
  teacher = haikd.load(tmp_path / 'first', 'teacher')
  assert teacher.config.data.image_size == 16
  assert haikd.load(tmp_path / 'first').config.data.image_size == 8
  source = registry.datasets['digits'].function('test')
  images, labels = zip(*((source[i]['image'], source[i]['label'])
                         for i in range(len(source))))
  hits = np.asarray(np.argmax(teacher.apply(np.stack(images)), -1)) == labels
  assert results['teacher']['accuracy'] == pytest.approx(hits.mean(), abs=1e-6)

  code, again, err = run(
      *view[:5], f'--config.teacher.init={tmp_path}/first/teacher',
      workdir='second')
  assert code == 0, err
  assert ('the teacher sees images as it was trained to, with mean=0.3, '
          'std=0.4, image_size=16 (config.teacher.view).') in err
  code, _, err = run(
      *view[:2], f'--config.teacher.init={tmp_path}/first/teacher',
      workdir='third')
  assert code == 2 and 'trained on images that were resized to 16' in err
  second = json.loads((tmp_path / 'second/result.json').read_text())
  for name in ('accuracy', 'cross_entropy'):
    assert second['teacher'][name] == results['teacher'][name]
