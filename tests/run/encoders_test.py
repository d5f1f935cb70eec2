"""Encoders of each family as a user distils them, from the command line."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors import numpy as safetensors
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers

from haikd.data import text  # noqa: F401  Registers its data sets.

GOLDEN = pathlib.Path(__file__).parents[1] / 'interop' / 'golden'
SPECIAL = ('<pad>', '<s>', '</s>', '<unk>')
CONFIG = """
from haikd import config as config_lib

def get_config():
  config = config_lib.base()
  config.steps = 2
  config.batch_size = config.evaluation.batch_size = 8
  config.data.name, config.data.source_dir = 'sentences', '{folder}'
  config.data.options = dict(length=8)
  config.teacher.init = 'hf:{folder}/teacher'
  config.student.init = 'hf:{folder}/student'
  config.student.init_layers = {layers}
  config.distillation.alpha = 0.0
  config.losses.vectors = dict(loss='embedding_cosine')
  if {maps}:
    config.losses.maps = dict(loss='attention_transfer')
  config.evaluation.final = 'validation'
  return config
"""


@pytest.fixture
def folder(tmp_path):
  """A folder of texts of 36 words."""
  rng = np.random.default_rng(0)
  for split in ('train', 'validation'):
    (tmp_path / f'{split}.txt').write_text(''.join(
        ' '.join(f'w{i}' for i in rng.integers(0, 36, 5)) + '\n'
        for _ in range(16)))
  return tmp_path


def copy(case, folder):
  """Copies a golden folder, with a tokenizer of words if it has none."""
  shutil.copytree(GOLDEN / case, folder)
  if not (folder / 'tokenizer.json').exists():
    names = (*SPECIAL, *(f'w{i}' for i in range(36)))
    made = tokenizers.Tokenizer(models.WordLevel(
        {name: i for i, name in enumerate(names)}, unk_token='<unk>'))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(SPECIAL))
    made.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps(
        dict(pad_token='<pad>', eos_token='</s>', unk_token='<unk>')))


@pytest.mark.parametrize('teacher, student, layers', [
    pytest.param('mpnet', 'xlm_roberta', (1,), marks=pytest.mark.slow),
    ('modernbert', 'modernbert', (0, 1)),
    pytest.param('sentence_t5', 'sentence_t5', None, marks=pytest.mark.slow)])
def test_encoder_is_distilled_and_exported(teacher, student, layers, folder,
                                           run):
  copy(teacher, folder / 'teacher')
  copy(student, folder / 'student')
  (folder / 'encoder.py').write_text(
      # Scores with a bias of relative positions are compared once.
      CONFIG.format(folder=folder, layers=layers, maps=teacher == 'mpnet'))
  code, _, err = run(config='encoder.py')
  assert code == 0, err
  code, _, err = run('--mode=export', '--format=hf',
                     f'--output={folder / "out"}', config='encoder.py')
  assert code == 0, err
  before, after = (
      json.loads((folder / name / 'config.json').read_text())
      for name in ('student', 'out'))
  # All fields are as they were, and with them the model type.
  if layers:
    before['num_hidden_layers'] = len(layers)
    if 'layer_types' in before:
      before['layer_types'] = [before['layer_types'][i] for i in layers]
  assert after == before
  for path in (folder / 'student').glob('**/*.safetensors'):
    theirs = safetensors.load_file(path)
    ours = safetensors.load_file(
        folder / 'out' / path.relative_to(folder / 'student'))
    kept = {name for name in theirs
            if not name.startswith('pooler') and name in ours}
    assert kept == set(ours)
    for name in kept:
      assert ours[name].shape == theirs[name].shape
