"""The model card: what outputs mean, and nothing of the author's machine."""

import pathlib

from haikd import config as config_lib
from haikd.run import card


def test_a_card_names_the_classes_and_no_folder(tmp_path):
  config = config_lib.base()
  config.data.source_dir = '~/secret/animals'
  config.teacher.init = 'hf:/home/me/big'
  text = card.build(
      config, pathlib.Path(tmp_path), parameters=1234, library='jax',
      usage='Call it.\n', class_names=('cat', 'dog'), ignored={},
      difference=1e-6)
  assert 'The outputs, in order, are those of `cat`, `dog`.' in text
  assert 'secret' not in text and '/home' not in text
  assert '"source_dir": "animals"' in text and '`hf:big`' in text


def test_without_a_teacher_there_is_no_license_of_one(tmp_path):
  text = card.build(
      config_lib.base(), pathlib.Path(tmp_path), parameters=1234,
      library='jax', usage='Call it.\n', class_names=(), ignored={},
      difference=None)
  assert 'trained on the data alone' in text and 'teacher\'s' not in text
  assert 'It inherits the terms of its data.' in text
