"""Images in folders of classes, as people have them."""

import io
import logging
import textwrap

import numpy as np
from PIL import Image
import pytest

from haikd.core import checks
from haikd.data import reader
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data.image import decode

RED, BLUE = (250, 10, 10), (10, 10, 250)


def write(path, colour=RED, mode='RGB', size=(4, 6), **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def folder(tmp_path):
  """Two splits of two classes; a file that no one meant is in one of them."""
  for split, count in (('train', 20), ('test', 5)):
    for name, colour in (('cat', RED), ('ant', BLUE)):
      for i in range(count):
        write(tmp_path / 'images' / split / name / f'{i}.png', colour)
  return tmp_path / 'images'


def opened(folder, split='train', **options):
  return source.open_source('image_folder', split, source_dir=str(folder),
                            options=options)


def decoded(content, place, channels=3):
  return np.asarray(decode.Encoded(content, place, channels))


def test_names_of_folders_are_the_classes(folder):
  train = opened(folder)
  assert train.class_names == ('ant', 'cat') and train.num_classes == 2
  assert len(train) == 40
  for example in (train[0], train[1]):  # The order is stratified.
    assert example['image'].shape == (6, 4, 3)
    blue = np.asarray(example['image'])[0, 0, 2] > 200
    assert example['label'] == (0 if blue else 1)
  assert {int(train[0]['label']), int(train[1]['label'])} == {0, 1}


def test_one_folder_of_classes_is_cut(folder):
  first = opened(folder / 'train', 'train[:80%]')
  rest = opened(folder / 'train', 'train[80%:]')
  assert (len(first), len(rest)) == (32, 8)
  for part, each in ((first, 16), (rest, 4)):
    assert [sum(part[i]['label'] == c for i in range(len(part)))
            for c in (0, 1)] == [each, each]


def test_classes_of_a_held_out_split_are_numbered_as_in_training(folder):
  for path in (folder / 'test' / 'ant').iterdir():
    path.unlink()
  (folder / 'test' / 'ant').rmdir()
  test = opened(folder, 'test')
  assert test.num_classes == 2
  assert {int(test[i]['label']) for i in range(5)} == {1}


def test_what_is_no_image_is_said_and_left_out(folder, caplog):
  caplog.set_level(logging.INFO, 'haikd')
  (folder / 'train' / 'cat' / 'notes.txt').write_text('x')
  (folder / 'train' / 'cat' / '.DS_Store').write_text('x')
  (folder / 'train' / '.ipynb_checkpoints').mkdir()
  write(folder / 'train' / 'cat' / 'deeper' / 'more.JPG')
  assert len(opened(folder)) == 41
  assert 'no image of a class, which are left out: notes.txt.' in caplog.text


def test_folders_of_images_beside_splits_are_said_and_left_out(folder, caplog):
  """Samples for a page, and Kaggle's images whose classes nobody has told."""
  caplog.set_level(logging.INFO, 'haikd')
  write(folder / 'samples' / '0.png')
  (folder / 'test').rename(folder / 'val')
  write(folder / 'test' / '1.png')
  write(folder / 'train' / 'cover.png')
  train = opened(folder)
  assert train.class_names == ('ant', 'cat') and len(train) == 40
  assert len(opened(folder, 'val')) == 10
  assert 'beside those of splits, which are left out: samples, test.' in (
      caplog.text)
  assert 'which are left out: cover.png.' in caplog.text
  with pytest.raises(checks.DataError, match="must have a folder for each class"
                     "; got images in '.*/test' itself"):
    opened(folder, 'test')


def spoil_class(folder):
  (folder / 'train' / 'dog').mkdir()
  (folder / 'train' / 'dog' / 'a.tif').write_text('x')


def spoil_name(folder):
  write(folder / 'test' / 'kat' / '0.png')


def spoil_image(folder):
  (folder / 'train' / 'cat' / '3.png').write_bytes(b'')


def spoil_layout(folder):
  for path in sorted(folder.glob('*/*/*')):
    path.rename(path.parents[1] / f'{path.parent.name}_{path.name}')


@pytest.mark.parametrize('spoil, split, match', (
    (spoil_class, 'train', r"train/dog' must have images of its class; got "
     'none with a suffix among .jpg'),
    (spoil_name, 'test', "got the folder 'kat', which is not in "),
    (spoil_image, 'train', r"cat/3.png' must be an image that Pillow can read; "
     'got none of the formats'),
    (spoil_layout, 'train', 'must have a folder for each class; got images in'),
    (lambda folder: None, 'validation', "got 'validation'. Known: test, train. "
     "A part of one is a split too, such as 'train.90%:.'"),
))
def test_what_cannot_be_right_is_refused_before_training(
    folder, spoil, split, match):
  spoil(folder)
  with pytest.raises(checks.DataError, match=match):
    opened(folder, split)


@pytest.mark.parametrize('given, match', (
    (None, 'config.data.source_dir must be the folder of the images; got None'),
    ('nothing', 'must have folders in it; got .*nothing')))
def test_a_missing_folder_is_named(tmp_path, given, match):
  with pytest.raises((checks.ConfigError, checks.DataError), match=match):
    source.open_source('image_folder', 'train',
                       source_dir=given and str(tmp_path / given))


def encoded(image, kind='png', **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def test_16_bits_are_scaled():
  """65535 / 257 = 255 and 300 / 257 is nearest to 1; a cut would be white."""
  deep = Image.fromarray(np.array([[0, 65535], [257, 300]], np.uint16))
  image = decoded(encoded(deep), 'x', 1)
  np.testing.assert_array_equal(image[..., 0], [[0, 255], [1, 1]])


def test_transparent_pixels_become_white():
  image = Image.new('RGBA', (2, 1), (10, 20, 30, 255))
  image.putpixel((1, 0), (10, 20, 30, 0))
  np.testing.assert_array_equal(
      decoded(encoded(image), 'x')[0], [(10, 20, 30), (255,) * 3])
  palette = Image.new('P', (1, 1), 1)
  palette.putpalette([0, 0, 0, 7, 8, 9])
  np.testing.assert_array_equal(
      decoded(encoded(palette), 'x')[0, 0], (7, 8, 9))
  np.testing.assert_array_equal(
      decoded(encoded(palette, transparency=1), 'x')[0, 0], (255,) * 3)


def test_greyscale_and_colour_have_the_same_channels():
  grey = decoded(encoded(Image.new('L', (2, 3), 7)), 'x')
  assert grey.shape == (3, 2, 3) and (grey == 7).all()
  # ITU-R 601: 0.299 x 100 + 0.587 x 50 + 0.114 x 10 = 60.39.
  colour = decoded(encoded(Image.new('RGB', (1, 1), (100, 50, 10))), 'x', 1)
  assert colour.shape == (1, 1, 1) and colour[0, 0, 0] == 60


def test_orientation_of_a_camera_is_applied():
  """Orientation 6: the file's first column is the top row, right to left."""
  image = Image.new('RGB', (8, 16), BLUE)
  exif = Image.Exif()
  exif[0x0112] = 6
  assert decoded(encoded(image, 'jpeg', exif=exif), 'x').shape == (
      8, 16, 3)


def test_pixels_without_a_largest_value_are_refused():
  with pytest.raises(checks.DataError, match="x must have whole numbers as "
                     "pixels; got mode='F'"):
    decoded(encoded(Image.new('F', (1, 1), 0.5), 'tiff'), 'x')


def test_an_image_cut_short_is_named():
  whole = encoded(Image.effect_noise((64, 64), 50))
  with pytest.raises(checks.DataError, match='my.png must be an image that '):
    decoded(whole[:len(whole) // 2], 'my.png')


def test_folders_by_the_command_line(run, folder, tmp_path):
  """Sizes differ: refused with the remedy, which works."""
  write(folder / 'train' / 'cat' / 'large.jpg', size=(9, 7))
  (tmp_path / 'images.py').write_text(textwrap.dedent(f'''
      from haikd import config as config_lib

      def get_config():
        config = config_lib.base()
        config.steps, config.batch_size, config.teacher.train.steps = 2, 8, 2
        config.data.name = 'image_folder'
        config.data.source_dir = {str(folder)!r}
        config.data.train = 'train[:80%]'
        config.evaluation.split = 'train[80%:]'
        config.teacher.options = config.student.options = dict(hidden=(4,))
        return config
  '''))
  code, _, err = run(config='images.py')
  assert code == 3 and 'Set config.data.image_size' in err
  code, out, err = run('--config.data.image_size=4', config='images.py')
  assert code == 0, err
  assert 'student' in out


@pytest.mark.parametrize('content', [b'', b'\x89PNG\r\n'])
def test_a_file_that_is_no_image_may_be_skipped(folder, content):
  (folder / 'train' / 'ant' / '3.png').write_bytes(content)
  with pytest.raises(checks.DataError, match='ant/3.png. must be an image'):
    opened(folder)
  skip = reading_lib.Reading(on_error='skip', max_skipped=1)
  train = source.open_source('image_folder', 'train', source_dir=str(folder),
                             options={}, reading=skip)
  columns = reader.Reader(train, 'train', reading=skip).gather(range(40))
  assert sorted(columns['weight']) == [0] + [1] * 39
