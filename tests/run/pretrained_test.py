"""Folders of transformers as people have them, from the command line."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors import numpy as safetensors

from haikd import launch  # noqa: F401  Registers what tests register on top of.

GOLDEN = pathlib.Path(__file__).parents[1] / 'interop' / 'golden'
WEIGHTS = 'model.safetensors'

CONFIG = """
from haikd import config as config_lib

def get_config():
  config = config_lib.base()
  config.steps = config.log_every = 1
  config.batch_size = config.evaluation.batch_size = 8
  config.data.name, config.data.source_dir = 'tokens', {source!r}
  config.data.options = dict(length=8)
  config.teacher.init, config.student.init = {teacher!r}, {student!r}
  return config
"""


@pytest.fixture
def folder(tmp_path):
  """A folder with token ids; returns a function that writes a config to it."""
  for split in ('train', 'validation', 'test'):
    ids = np.random.RandomState(0).randint(0, 24, 256).astype('uint16')
    np.save(tmp_path / f'{split}.npy', ids)

  def write(student, case='qwen2', **fields):
    target = tmp_path / student
    shutil.copytree(GOLDEN / case, target)
    config = json.loads((target / 'config.json').read_text())
    (target / 'config.json').write_text(json.dumps({**config, **fields}))
    (tmp_path / 'pretrained.py').write_text(CONFIG.format(
        source=str(tmp_path), teacher=f'hf:{GOLDEN / case}',
        student=f'hf:{target}'))
    return target

  return write


@pytest.mark.slow
def test_student_of_some_windowed_layers_is_trained_and_exported(
    folder, run, tmp_path):
  """The layers 1 and 2 of the weights have windows, and 0 and 2 are taken."""
  source = folder('student', note='hand-made', eos_token_id=[3, 4])
  (source / 'generation_config.json').write_text('{"eos_token_id": [3, 4]}')
  layers = '--config.student.init_layers=(0,2)'
  code, _, err = run(layers, config='pretrained.py')
  assert code == 3 and err.endswith(
      "set config.student.init_options.ignore=('note',).\n")
  flags = layers, "--config.student.init_options.ignore=('note',)"
  code, _, err = run(*flags, config='pretrained.py')
  assert code == 0, err
  code, out, err = run(*flags, '--mode=export', config='pretrained.py')
  assert code == 0, err
  out = pathlib.Path(out.strip())
  written = json.loads((out / 'config.json').read_text())
  expected = json.loads((source / 'config.json').read_text())
  assert written == dict(
      expected, num_hidden_layers=2,
      layer_types=['full_attention', 'sliding_attention'])
  assert (out / 'generation_config.json').exists()
  assert 'when the student was read: `note`.' in (out / 'README.md').read_text()


@pytest.mark.parametrize('spoil, code, sentence', (
    (lambda x: {**x, 'model.norm.weight': x['model.norm.weight'] * np.nan}, 3,
     'config.student.init must hold finite numbers; got'),
    (lambda x: {f'module.{name}': values for name, values in x.items()}, 0,
     "'module.' is left out of the names of all tensors"),
))
def test_weights_as_people_save_them(folder, run, spoil, code, sentence):
  path = folder('student') / WEIGHTS
  safetensors.save_file(spoil(safetensors.load_file(path)), path)
  actual, _, err = run(config='pretrained.py')
  assert actual == code, err
  assert err.count(sentence) == 1
