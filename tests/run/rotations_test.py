"""Decoders with scaled rotations run from the command line, of every kind.

The teacher's cross-entropy was computed with transformers 5.24 on the rows of
`rows()`, row by row, with the weights of tests/interop/golden:

  logits = model(row[None]).logits[0, :-1].double()
  -logits.log_softmax(-1).gather(1, row[1:, None]).mean()
"""

import json
import pathlib

import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent.parent / 'interop/golden'
LENGTH, VOCABULARY = 8, 24

CONFIG = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps = 2
      config.batch_size = config.evaluation.batch_size = 8
      config.data.name = 'tokens'
      config.data.source_dir = {source!r}
      config.data.options = dict(length={length}, vocabulary={vocabulary})
      config.teacher.init = config.student.init = 'hf:{folder}'
      config.student.init_layers = (0,)
      return config
"""

CROSS_ENTROPY = dict(
    llama_linear=3.789611, llama_dynamic=3.721781, llama_yarn=3.889968,
    llama_llama3=3.962207,
    llama_longrope=3.724163)
QUICK = ('llama_llama3',)


def rows():
  return np.random.RandomState(0).randint(0, VOCABULARY, (8, LENGTH))


# The kinds differ in a table of angles, which rotary_test.py has of each.
@pytest.mark.parametrize('case', [
    pytest.param(case, marks=[pytest.mark.slow] * (case not in QUICK))
    for case in CROSS_ENTROPY])
def test_scaled_rotations_train_plan_and_export(case, run, tmp_path):
  for split in ('train', 'validation', 'test'):
    np.save(tmp_path / f'{split}.npy', rows().ravel().astype(np.uint16))
  (tmp_path / 'scaled.py').write_text(CONFIG.replace('\n    ', '\n').format(
      source=str(tmp_path), length=LENGTH, vocabulary=VOCABULARY,
      folder=GOLDEN / case))
  code, _, err = run(config='scaled.py')
  assert (code, err) == (0, '')
  results = json.loads((tmp_path / 'run/result.json').read_text())
  np.testing.assert_allclose(
      results['teacher']['cross_entropy'], CROSS_ENTROPY[case], atol=1e-4)
  if case == 'llama_llama3':  # Planning takes longest, and is alike for all.
    assert run('--mode=plan', '--topology=cpu:1', config='scaled.py')[0] == 0
  assert run('--mode=export', config='scaled.py')[0] == 0
  written, read = (json.loads((folder / 'config.json').read_text())
                   for folder in (tmp_path / 'run/export', GOLDEN / case))
  assert written['rope_parameters'] == read['rope_parameters']


def test_scaling_that_the_config_gives(run, tmp_path):
  for split in ('train', 'validation', 'test'):
    np.save(tmp_path / f'{split}.npy', rows().ravel().astype(np.uint16))
  (tmp_path / 'scaled.py').write_text(CONFIG.replace('\n    ', '\n').format(
      source=str(tmp_path), length=LENGTH, vocabulary=VOCABULARY,
      folder=GOLDEN / 'llama'))
  code, _, err = run(
      '--config.student.options.rope_scaling.kind=linear',
      '--config.student.options.rope_scaling.factor=2.5', config='scaled.py')
  assert (code, err) == (0, '')
