"""Each family of decoders, from a folder of transformers to another one."""

import json
import pathlib
import textwrap

import haiku as hk
import numpy as np
import pytest

from haikd import interop
from haikd import launch
from haikd.core import registry
from haikd.storage import checkpoint

GOLDEN = pathlib.Path(__file__).parents[1] / 'interop' / 'golden'
# {student: teacher}; the first three have each family on one side.
PAIRS = dict(gemma2='gemma3', phi3='granite', smollm3='olmo2',
             gemma3='gemma2', granite='mixtral', olmo2='qwen3_moe')
CONFIG = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.checkpoint_every = 2, 8, 2
      config.data.name, config.data.source_dir = 'tokens', {data!r}
      config.data.options = dict(length=8)
      config.teacher.init, config.student.init = {teacher!r}, {student!r}
      config.student.options = dict(hidden=16)
      config.distillation.use_attention_transfer = {is_gemma}
      return config
"""


def train_and_export(student, folder):
  """Runs two steps through the launcher; returns the exported folder."""
  rng = np.random.default_rng(0)
  for split, rows in (('train', 8), ('validation', 2), ('test', 2)):
    np.save(folder / f'{split}.npy', rng.integers(0, 24, 8 * rows))
  (folder / 'job.py').write_text(textwrap.dedent(CONFIG.format(
      data=str(folder), teacher=f'hf:{GOLDEN / PAIRS[student]}',
      student=f'hf:{GOLDEN / student}', is_gemma='gemma' in student)))
  call = ['launch', f'--config={folder / "job.py"}',
          f'--workdir={folder / "run"}']
  assert launch.main(call) == 0
  assert launch.main(
      [*call, '--mode=export', f'--output={folder / "out"}']) == 0
  return folder / 'out'


@pytest.mark.parametrize('student', [
    pytest.param(name, marks=[pytest.mark.slow] * (i > 0))
    for i, name in enumerate(PAIRS)])
def test_a_family_is_trained_and_exported_as_itself(student, fresh, tmp_path):
  exported = train_and_export(student, tmp_path)
  results = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert results['teacher']['kl'] == 0 < results['student']['kl'] < np.inf
  before, after = (interop.describe(f'hf:{folder}')
                   for folder in (GOLDEN / student, exported))
  assert after.options == {**before.options, 'hidden': 16}
  types = (json.loads((folder / 'config.json').read_text())['model_type']
           for folder in (GOLDEN / student, exported))
  assert len(set(types)) == 1


@pytest.mark.slow
@pytest.mark.parametrize('student', PAIRS)
def test_transformers_computes_the_logits_of_the_student(
    student, fresh, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  exported = train_and_export(student, tmp_path)
  tokens = np.random.default_rng(1).integers(0, 24, (2, 8))
  model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
  with torch.no_grad():
    expected = model(input_ids=torch.tensor(tokens)).logits.numpy()
  described = interop.describe(f'hf:{exported}')
  function = registry.models[described.model].function
  net = hk.transform(
      lambda x: function(x, is_training=False, **described.options))
  params, _ = checkpoint.load_network(tmp_path / 'run')
  np.testing.assert_allclose(
      net.apply(params, None, tokens).materialise(), expected, rtol=0,
      atol=1e-4)
