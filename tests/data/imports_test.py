"""What must not be imported, and what only when it is needed."""

import subprocess
import sys


def loaded(code, tmp_path):
  """Returns the modules that a fresh interpreter has after running code."""
  script = f'import sys\n{code}\nprint(*sys.modules)'
  done = subprocess.run(
      [sys.executable, '-c', script, str(tmp_path)],
      check=True, capture_output=True, text=True)
  return set(done.stdout.split())


def test_importing_haikd_leaves_data_libraries_alone(tmp_path):
  modules = loaded('import haikd, haikd.data', tmp_path)
  assert not modules & {'tensorflow_datasets', 'grain', 'sklearn', 'tensorflow',
                        'torch', 'flax'}


def test_digits_are_read_without_tensorflow_torch_and_flax(tmp_path):
  code = """
from haikd import config as config_lib
from haikd.data import pipeline
config = config_lib.base()
config.data.data_dir = sys.argv[1]
data = pipeline.build_data(config)
assert next(data.train()).inputs.shape == (128, 8, 8, 1)
assert sum(batch.mask.sum() for batch in data.evaluation('test')) == 600
"""
  modules = loaded(code, tmp_path)
  assert {'tensorflow_datasets', 'grain', 'array_record'} <= modules
  assert not modules & {'tensorflow', 'torch', 'flax'}


def test_a_small_state_is_saved_and_read_without_orbax(tmp_path):
  code = """
import jax.numpy as jnp
import haikd.run.job
from haikd.core import base
from haikd.storage import checkpoint, checkpointer
params = base.Params({'net': {'w': jnp.ones(3)}}, {})
state = base.TrainState(jnp.int32(1), params, {}, (), (), None)
with checkpointer.Checkpointer(sys.argv[1], keep=1) as opened:
  opened.save(1, state, {}, {})
  opened.wait()
  assert opened.restore(state)[0].step == 1
assert checkpoint.load_network(sys.argv[1])[0]['net']['w'].sum() == 3
"""
  modules = loaded(code, tmp_path)
  assert 'haikd.storage.checkpointer' in modules
  assert not modules & {'orbax', 'orbax.checkpoint', 'tensorstore'}
