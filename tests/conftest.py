"""Eight devices on any machine, temporary caches, and fixtures to run a config.

Most time goes into compiling programs that run once. They are therefore not
optimised, and their loops are written by the older of XLA's two emitters, which
takes a third of the time of the newer. XLA_FLAGS of the caller still apply.

What haikd keeps between runs (prepared data, compiled programs) goes to a
temporary folder, which all workers of a test session share. The user's caches
are not touched.
"""

import atexit
from importlib import metadata
import os
import pathlib
import shutil
import sys
import tempfile
import textwrap

import pytest

FLAGS = ['--xla_backend_optimization_level=0']
if metadata.version('jaxlib').startswith('0.10.'):  # XLA has one emitter since.
  FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join(
    (*FLAGS, os.environ.get('XLA_FLAGS', ''),
     '--xla_force_host_platform_device_count=8'))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Where an operation was written stands in no test: a twentieth of the time.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
os.environ['COLUMNS'] = '200'  # A row of a table is one line.

if 'PYTEST_XDIST_WORKER' not in os.environ:  # Workers inherit the variables.
  CACHE = tempfile.mkdtemp(prefix='haikd-tests-')
  atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
  for variable in ('XDG_CACHE_HOME', 'JAX_COMPILATION_CACHE_DIR',
                   'TFDS_DATA_DIR', 'MPLCONFIGDIR'):
    os.environ[variable] = os.path.join(CACHE, variable.lower())
  # Many tests compile the same small programs.
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

# `-m quick` runs these, except for what is slow, and except for most tests of
# the step.
QUICK = ('style_test.py', 'rooms_test.py', 'docstrings_test.py', 'docs_test.py',
         'core/', 'config/', 'losses/', 'align/', 'engine/step_test.py')
# The tests of the step that it runs.
QUICK_STEPS = ('test_gradient_is_that_of_the_whole_batch[1-',
               'test_what_stands_in_padding', 'test_no_gradient_reaches')
# What takes longest of these files.
NOT_QUICK = ('losses/chunks_test.py',)

# The files that take longest. They run first: were one of them last, a worker
# would be alone with it.
LONGEST = ('processes/distributed_test.py', 'engine/every_mesh_test.py',
           'launch_test.py', 'engine/step_test.py', 'run/',
           'objective/packed_rows_test.py', 'style_test.py')

FOLDER = pathlib.Path(__file__).parent

CONFIG = """
    from haikd import config as config_lib

    def get_config(variant=''):
      config = config_lib.base()
      config.steps = 8
      config.batch_size = 16
      config.log_every = 2
      config.checkpoint_every = 4
      config.data.name = 'synthetic'
      config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
      config.teacher.options = dict(hidden=(8, 8))
      config.teacher.train.steps = 4
      config.student.options = dict(hidden=(4,))
      return config_lib.variant(config, variant)
"""

LANGUAGE_MODEL = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size = 1, 8
      config.evaluation.batch_size = 8
      config.teacher.train.steps = 1
      for network in (config.teacher, config.student):
        network.model = 'llama'
        network.options = dict(width=8, depth=1, heads=1, hidden=8)
      for name, value in {data!r}.items():
        config.data[name] = value
      return config
"""

PLUGIN = """
    import haikd
    import numpy as np
    from haikd import data

    @haikd.register_dataset()
    def spoilt(split, what='nothing'):
      image = np.ones((40, 4, 4, 1), np.float32)
      label = np.arange(40) % 3
      if what == 'label':
        label[7] = 3
      if what == 'nan':
        image[7, 0, 0, 0] = np.nan
      return data.Arrays(dict(image=image, label=label), num_classes=3)

    @haikd.register_loss(on='logits')
    def explosive(student, teacher, *, mask):
      return haikd.masked_mean((student - teacher).sum(-1) / 0.0, mask)
"""


def pytest_collection_modifyitems(items):
  """Puts the longest files first, and marks the quick tier.

  The tests of the step in that tier are those on one device.
  """
  name_of = lambda item: item.path.relative_to(FOLDER).as_posix()
  items.sort(key=lambda item: not name_of(item).startswith(LONGEST))
  for item in items:
    name = name_of(item)
    quick = name.startswith(QUICK) and name not in NOT_QUICK and (
        name != 'engine/step_test.py' or item.name.startswith(QUICK_STEPS))
    if quick and not item.get_closest_marker('slow'):
      item.add_marker('quick')


@pytest.fixture
def compiled_for():
  """Returns a context that traces for a platform, also one not present."""
  import jax

  def context(platform):
    device = jax.sharding.AbstractDevice('device', None, platform=platform)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)

  return context


@pytest.fixture
def fresh():
  """Undoes what a config or plugin imports, registers or puts on the path."""
  from haikd.core import registry
  from haikd.core import writers
  # Were they first imported inside, they would be gone for the next test.
  from haikd.data import builders  # noqa: F401
  path, modules = list(sys.path), set(sys.modules)
  with (registry.losses.temporary(), registry.datasets.temporary(),
        writers.writers.temporary()):
    yield
  sys.path[:] = path
  for name in set(sys.modules) - modules:
    if name.startswith(('my_', 'digits_', 'config_file')):
      del sys.modules[name]


@pytest.fixture
def write_language_model(tmp_path):
  """Writes a config of a tiny language model, with fields of its data."""

  def write(file, **data):
    path = tmp_path / file
    path.write_text(textwrap.dedent(LANGUAGE_MODEL.format(data=data)))
    return path

  return write


@pytest.fixture
def buckets(monkeypatch):
  """Replaces gcsfs, installed or not, by objects in memory; returns its class.

  They have what gcsfs says of them, and can be made to fail.
  """
  import hashlib
  import importlib

  from etils.epath import backend
  from fsspec.implementations import memory

  from haikd.storage import paths

  class FakeBuckets(memory.MemoryFileSystem):
    protocol = ('gcs', 'gs')
    store = {}
    pseudo_dirs = ['']
    failure = None
    # Calls after which it fails.
    healthy = 0

    @classmethod
    def _strip_protocol(cls, path):
      return '/' + path.removeprefix('gs://').strip('/')

    @classmethod
    def upload(cls, folder, bucket):
      """Copies a folder's files; returns the address of the copy."""
      for path in sorted(folder.rglob('*')):
        if path.is_file():
          cls().pipe_file(f'{bucket}/{path.relative_to(folder)}',
                          path.read_bytes())
      return bucket

    def _check(self):
      if self.failure:
        type(self).healthy -= 1
        if self.healthy < 0:
          raise self.failure

    def ls(self, path, detail=True, **options):
      self._check()
      return super().ls(path, detail, **options)

    def info(self, path, **options):
      self._check()
      info = super().info(path, **options)
      if info['type'] == 'file':
        content = self.store[self._strip_protocol(path)].getvalue()
        info['md5Hash'] = hashlib.md5(content).hexdigest()
      return info

    def _open(self, *args, **options):
      self._check()
      return super()._open(*args, **options)

  forget = backend.fsspec_backend._get_filesystem.cache_clear
  monkeypatch.setattr(paths.importlib.util, 'find_spec', lambda name: name)
  registry = importlib.import_module('fsspec.registry')
  monkeypatch.setitem(registry._registry, 'gcs', FakeBuckets)
  forget()
  yield FakeBuckets
  forget()
  paths._epath.cache_clear()


@pytest.fixture
def run(fresh, tmp_path, capsys):
  """Runs a config in a new folder; returns (exit code, stdout, stderr)."""
  from haikd import launch
  (tmp_path / 'my_plugin.py').write_text(textwrap.dedent(PLUGIN))
  (tmp_path / 'tiny.py').write_text(textwrap.dedent(CONFIG))

  def call(*args, workdir='run', config='tiny.py'):
    argv = ['launch', f'--config={tmp_path / config}',
            f'--workdir={tmp_path / workdir}', *args]
    code = launch.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err

  return call


@pytest.fixture(autouse=True)
def two_devices(request, monkeypatch):
  """Runs jobs on two devices, except for tests that are marked `mesh`.

  A program for eight takes a third longer to compile.
  """
  is_job = request.path.parent == FOLDER / 'run' or (
      {'run', 'fresh'} & set(request.fixturenames))
  if is_job and not request.node.get_closest_marker('mesh'):
    import jax
    every = jax.devices
    monkeypatch.setattr(jax, 'devices', lambda *platform: (
        every(*platform) if platform else every()[:2]))


@pytest.fixture(autouse=True)
def without_report(request, monkeypatch):
  """Spares all tests but those marked `report` the page, a second a job."""
  if request.node.get_closest_marker('report'):
    return
  # Tests that start jobs have imported it, or use `run`.
  if 'haikd.run.report' in sys.modules or 'run' in request.fixturenames:
    from haikd.run import report
    for name in ('observe', 'write'):
      monkeypatch.setattr(report.Report, name, lambda *args: None)
    monkeypatch.setattr(report, 'write_of_seeds', lambda *args: None)
