"""Exports are loaded by a process that cannot import haikd."""

import pathlib
import subprocess
import sys
import textwrap

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.data import interface as interface_lib
from haikd.network import network as network_lib
from haikd.run import portable
from haikd.run import stablehlo
from haikd.run import trained
from haikd.storage import archive

N, V = 10, 13
TEXT = dict(width=8, depth=2, heads=2, hidden=12)
ENCODER = TEXT | dict(vocabulary=V)
VIT = dict(patch_size=4, width=8, depth=2, heads=2)

# A network without haikd, as a user has it; the child runs this text too.
OWN = textwrap.dedent("""
    import haiku as hk
    import jax

    def own(x, is_training=False, num_classes=13):
      x = hk.Conv2D(3, 3)(x)
      x = hk.BatchNorm(True, True, 0.9)(x, is_training)
      return hk.Linear(num_classes)(hk.Flatten()(jax.nn.relu(x)))
""")

# All models, and what they may do otherwise: loops, experts, windows, heads.
IMAGES = dict(
    convnet=('convnet', dict(channels=(4, 6))),
    own=('own', {}),
    mlp=('mlp', dict(hidden=(6, 5))),
    resnet=('resnet', dict(blocks=(1, 1), channels=(8, 16), small_images=True)),
    vit=('vit', VIT),
    vit_scan=('vit', VIT | dict(scan=True)),
)
TEXTS = dict(
    llama=('llama', TEXT | dict(key_value_heads=1)),
    experts=('llama', TEXT | dict(experts=4, experts_per_token=2)),
    windows=('llama', TEXT | dict(window=4, window_layers=(1,), scan=True)),
    gpt2=('gpt2', TEXT | dict(positions=16)),
    bert=('bert', ENCODER),
    mpnet=('bert', ENCODER | dict(relative_buckets=8, types=0)),
    modernbert=('modernbert', ENCODER | dict(
        window=4, window_layers=(1,), head='classification')),
    t5_encoder=('t5_encoder', ENCODER | dict(head_size=4)),
)
QUICK = ('convnet', 'own', 'llama')

CHILD = """
import os, pathlib, re, sys
import numpy as np
sys.modules['haikd'] = None  # Now `import haikd` fails.
top = pathlib.Path.cwd()
given = np.load('inputs.npz')
outputs = {}

def shown(folder):
  os.chdir(folder)
  return re.search('```python\\n(.*?)```', open('README.md').read(), re.S)[1]

for name in sys.argv[1:]:
  spoken = dict(inputs=given[name])
  if f'{name}_mask' in given:
    spoken['mask'] = given[f'{name}_mask']
  exec(shown(top / name / 'program'), spoken)
  outputs[name] = spoken['outputs']
  alone = {}
  exec(shown(top / name / 'archive'), alone)
  weights = {f'{prefix}{module}/{last}': array
             for prefix, tree in (('', alone['params']),
                                  ('state:', alone['state']))
             for module, leaves in tree.items()
             for last, array in leaves.items()}
  more = [spoken['mask']] if 'mask' in spoken else []
  outputs[f'{name}_weights'] = spoken['program'].call(
      weights, spoken['inputs'], *more)
  if name == 'own':
    exec(open(top / 'own.py').read(), alone)
    x = np.float32(given[name]) / 255 / 0.5 - 0.5
    outputs['own_haiku'], _ = alone['hk'].transform_with_state(
        alone['own']).apply(alone['params'], alone['state'], None, x)
assert not any(name.startswith('haikd.') for name in sys.modules)
os.chdir(top)
np.savez('outputs.npz', **outputs)
"""


@pytest.fixture(autouse=True)
def own_names():
  names = {}
  exec(OWN, names)  # pylint: disable=exec-used
  with registry.models.temporary():
    haikd.register_model('own')(
        lambda x, *, is_training, num_classes: names['own'](
            x, is_training, num_classes))
    yield


def make(model, options, *, seed=0, shape=None, mask=()):
  """Returns a network of random weights, and raw inputs and their mask."""
  rng = np.random.default_rng(seed)
  if shape:
    spec, raw = (shape, 'float32'), rng.integers(0, 256, (3, *shape), np.uint8)
  else:
    spec, mask = ((N,), 'int32'), (N,)
    raw = rng.integers(0, V, (3, N), np.int32)
  config = haikd.config.base()
  config.student.model, config.student.options = model, options
  if shape:
    config.data.mean, config.data.std = 0.25, 0.5
  interface = interface_lib.Interface(
      {'': spec}, mask, bool(shape), V, None)
  network = network_lib.build_network(
      config.student, title='student', num_classes=V)
  lengths = rng.integers(1, N, (3, *[1] * len(mask)))
  given = np.arange(N) < lengths if mask else np.ones(3, bool)
  batch = base.Batch(jnp.asarray(raw, spec[1]), given)
  params, state = jax.tree.map(
      lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), x.dtype),
      jax.jit(network.init)(jax.random.key(0), batch))
  return (trained.TrainedNetwork(params, jax.tree.map(np.abs, state), config,
                                 interface), raw, given)


def write(folder, network, mask):
  """Writes both formats with their cards; returns the largest difference."""
  shape, dtype = network.interface.inputs['']
  pixels = np.dtype(np.uint8) if network.interface.images else None
  view = base.View(np.zeros((len(mask), *shape), dtype), mask)
  trial = portable.make_trial(network, view, pixels)
  differences = []
  for name in ('program', 'archive'):
    (folder / name).mkdir(parents=True)
    written = (
        portable.write_program(folder / name, network, trial, pixels)
        if name == 'program' else
        portable.write_archive(folder / name, network, trial))
    (folder / name / 'README.md').write_text(written.usage)
    differences.append(written.difference)
  return differences


@pytest.mark.parametrize('names', (
    pytest.param(QUICK, id='quick'),
    pytest.param(tuple({**IMAGES, **TEXTS}), id='all',
                 marks=pytest.mark.slow)))
def test_a_process_without_haikd_computes_the_same(names, tmp_path):
  if set(names) != set(QUICK):
    models = {model for model, _ in {**IMAGES, **TEXTS}.values()}
    assert models == set(registry.models.names())
  given, expected = {}, {}
  for name in names:
    network, raw, mask = (make(*IMAGES[name], shape=(8, 8, 1))
                          if name in IMAGES else make(*TEXTS[name]))
    by_program, by_archive = write(tmp_path / name, network, mask)
    assert by_program < 1e-5 and by_archive == 0
    # Fewer examples than were compared, and fewer tokens.
    given[name] = raw[:2]
    if name in TEXTS:
      given[name], given[f'{name}_mask'] = raw[:2, :7], mask[:2, :7]
    expected[name] = network.apply(given[name], given.get(f'{name}_mask'))
  (tmp_path / 'own.py').write_text(OWN)
  np.savez(tmp_path / 'inputs.npz', **given)
  done = subprocess.run([sys.executable, '-c', CHILD, *names], cwd=tmp_path,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  outputs = np.load(tmp_path / 'outputs.npz')
  for name, value in outputs.items():
    of = name if name in expected else name.rpartition('_')[0]
    mask = given.get(f'{of}_mask')
    real = np.s_[:] if mask is None or value.ndim < 3 else mask
    np.testing.assert_allclose(
        value[real], expected[of][real], rtol=1e-4, atol=1e-5, err_msg=name)
  assert ('own_haiku' in outputs) == ('own' in names)


def of_function(function, **options):
  """Returns a network of texts, with outputs of its own function."""
  haikd.register_model('mine')(function)
  return make('mine', options)


def by_length(inputs, *, is_training, num_classes, mask):
  """Has parameters for each position, so that their number is fixed."""
  x = jnp.where(mask, inputs, 0).astype(jnp.float32)
  return hk.Linear(num_classes)(hk.Flatten()(x))


def by_batch(inputs, *, is_training, num_classes):
  """Asks for the number of examples, which then has to be known."""
  if inputs.shape[0] > 100:
    raise ValueError('too many')
  return hk.Linear(num_classes)(inputs.astype(jnp.float32))


def unexported(inputs, *, is_training, num_classes):
  """Calls Python, which no program can."""
  x = jax.pure_callback(np.float32, jax.ShapeDtypeStruct((), jnp.float32), 1.0)
  return hk.Linear(num_classes)(inputs * x)


@pytest.mark.parametrize('function, shapes, said', (
    (by_length, stablehlo.Shapes(None, False, None),
     'The number of positions is fixed'),
    (by_batch, stablehlo.Shapes(1, False, None), 'The batch is fixed to 1'),
))
def test_an_axis_that_must_be_known_is_fixed_and_said(
    function, shapes, said, tmp_path):
  network, _, mask = of_function(function)
  assert stablehlo.build(network).shapes == shapes
  write(tmp_path, network, mask)
  assert said in (tmp_path / 'program' / 'README.md').read_text()


def test_what_jax_cannot_export_is_one_line():
  network, *_ = of_function(unexported)
  with pytest.raises(checks.ConfigError, match='must be of a network that JAX '
                     'can export .* Use --format=npz'):
    stablehlo.build(network)


def test_outputs_that_differ_are_refused(tmp_path, monkeypatch):
  network, _, mask = make(*IMAGES['mlp'], shape=(8, 8, 1))
  monkeypatch.setattr(stablehlo, '_scaled', lambda image, scale: image / 250)
  with pytest.raises(checks.DataError, match='outputs that differ by'):
    write(tmp_path, network, mask)


def test_a_job_is_exported(run, tmp_path):
  assert run('--config.data.std=0.5')[0] == 0
  flags = ('--config.data.std=0.5', '--mode=export')
  weights = archive.named(haikd.load(tmp_path / 'run').params)
  for kind in ('stablehlo', 'npz'):
    code, out, err = run(*flags, f'--format={kind}')
    assert (code, err) == (0, '')
    folder = tmp_path / f'run/export-{kind}'
    assert out.splitlines()[-1] == str(folder)
    card = (folder / 'README.md').read_text()
    assert 'differ from those of the trained network by at most' in card
    assert '**this model**' in card and str(tmp_path) not in card
    np.testing.assert_equal(dict(np.load(folder / 'weights.npz')), weights)
  # An earlier export of the format is replaced, anything else is not.
  npz = tmp_path / 'run/export-npz'
  assert run(*flags, '--format=npz')[0] == 0
  code, _, err = run(*flags, '--format=stablehlo', f'--output={npz}')
  assert code == 2 and 'an earlier export of this --format' in err
  (npz / 'README.md').write_text('mine')
  code, _, err = run(*flags, '--format=npz')
  assert code == 2 and 'where README.md has changed' in err
  assert (npz / 'README.md').read_text() == 'mine'


def test_the_guide_shows_what_the_card_does():
  guide = pathlib.Path(haikd.__file__).parents[1] / 'docs' / 'your_own.md'
  assert portable.LOAD_PROGRAM in guide.read_text()


def test_a_package_that_is_missing_is_named(run, monkeypatch):
  monkeypatch.setitem(sys.modules, 'flatbuffers', None)
  code, _, err = run('--mode=export', '--format=stablehlo')
  assert code == 2
  assert err == (
      'haikd: --format=stablehlo must have the package flatbuffers; got none. '
      'Run `pip install haikd[export]`.\n')
