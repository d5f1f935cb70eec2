"""The command line, from a config file to the table of results."""

import configparser
from importlib import metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from haikd import __main__ as program
from haikd import launch
from haikd.core import checks
from haikd.run import export
from haikd.run import job
from haikd.run import launch_flags

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'


def rows(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_job_trains_and_reports_all_three(run, tmp_path):
  code, out, err = run('--config.baseline=True', '--config.evaluation.every=4')
  assert (code, err) == (0, '')
  results = json.loads((tmp_path / 'run/result.json').read_text())
  assert list(results) == ['teacher', 'student_alone', 'student']
  for row in results.values():
    assert set(row) == {'parameters', 'accuracy', 'cross_entropy', 'kl',
                        'reverse_kl', 'acceptance', 'agreement', 'f1',
                        'seconds'}
  # 16 x 8 + 8, 8 x 8 + 8 and 8 x 3 + 3; 16 x 4 + 4 and 4 x 3 + 3.
  assert results['teacher']['parameters'] == 136 + 72 + 27
  assert results['student']['parameters'] == 68 + 15
  assert results['teacher']['agreement'] == 1
  assert abs(results['teacher']['acceptance'] - 1) < 1e-6
  assert abs(results['teacher']['kl']) < 1e-6
  assert out.splitlines()[-4].split() == [
      'test', 'parameters', 'accuracy', 'cross-entropy', 'KL', 'to', 'teacher',
      'agreement', 'seconds']
  assert out.splitlines()[-1].startswith('student distilled')
  train = [row for row in rows(tmp_path / 'run') if row['split'] == 'train']
  assert [row['step'] for row in train] == [2, 4, 6, 8]
  assert {'loss', 'loss/kl_divergence', 'loss/cross_entropy', 'grad_norm',
          'learning_rate', 'examples_per_second'} <= set(train[0])
  assert list((tmp_path / 'run').glob('events.out.tfevents.*'))


def test_finished_job_is_not_trained_again(run, tmp_path):
  assert run()[0] == 0
  before = (tmp_path / 'run/metrics.jsonl').read_bytes()
  results = json.loads((tmp_path / 'run/result.json').read_text())
  assert run()[0] == 0
  assert (tmp_path / 'run/metrics.jsonl').read_bytes() == before
  again = json.loads((tmp_path / 'run/result.json').read_text())
  for name in results:  # The last checkpoint was written a little earlier.
    seconds = results[name].pop('seconds')
    assert again[name].pop('seconds') <= seconds
  assert results == again


def test_eval_repeats_the_results_of_training(run, tmp_path):
  assert run('--config.baseline=True')[0] == 0
  trained = json.loads((tmp_path / 'run/result.json').read_text())
  assert run('--mode=eval')[0] == 0
  evaluated = json.loads((tmp_path / 'run/eval-test.json').read_text())
  for name, row in trained.items():
    for metric in set(row) - {'seconds'}:
      np.testing.assert_allclose(evaluated[name][metric], row[metric])


def test_plugin_beside_the_config_is_found(run):
  code, _, err = run('--config.plugins=my_plugin', '--config.data.name=spoilt',
                     '--config.data.options={}')
  assert (code, err) == (0, '')


def test_another_run_gives_teacher_and_initial_student(run, tmp_path):
  assert run(workdir='first')[0] == 0
  code, _, err = run(
      f'--config.teacher.init={tmp_path / "first/teacher"}',
      f'--config.student.init={tmp_path / "first"}', '--config.steps=1',
      '--config.optimizer.learning_rate=0.0', workdir='second')
  assert (code, err) == (0, '')
  first, second = (
      json.loads((tmp_path / name / 'result.json').read_text())
      for name in ('first', 'second'))
  for name in ('teacher', 'student'):
    np.testing.assert_allclose(second[name]['cross_entropy'],
                               first[name]['cross_entropy'], rtol=1e-6)


@pytest.fixture
def seen(fresh, monkeypatch):
  """Parses a command line; returns the config that the job would get."""

  def call(*args):
    configs = []
    monkeypatch.setattr(job, 'train', lambda c, *_: configs.append(c))
    assert launch.main(['launch', *map(str, args)]) == 0
    return configs[0]

  return call


@pytest.fixture
def tiny(run, tmp_path):
  return tmp_path / 'tiny.py'


@pytest.mark.parametrize('flag, path, value', (
    ('student.options.dropout=0.1', 'student.options.dropout', 0.1),
    ('student.options.hidden=(16, 8)', 'student.options.hidden', (16, 8)),
    ('student.options.bias=false', 'student.options.bias', False),
    ('student.taps.features=block_*', 'student.taps.features', 'block_*'),
    ('data.augment.shift.pixels=1', 'data.augment.shift.pixels', 1),
    ('optimizer.options.b1=0.8', 'optimizer.options.b1', 0.8),
    ('teacher.train.augment.mixup.alpha=1.0',
     'teacher.train.augment.mixup.alpha', 1.0),
    ('losses.x.loss=feature_matching', 'losses.x.loss', 'feature_matching'),
    ('losses.y.layers=(0, 1)', 'losses.y.layers', (0, 1)),
    ('losses.y.layers=pool', 'losses.y.layers', 'pool'),
    ('losses.y.weight={"kind": "linear", "steps": 4}', 'losses.y.weight.steps',
     4),
    ('losses["their/loss"]={"loss": "z", "weight": 2}',
     'losses.their/loss.weight', 2),
    ('steps=3', 'steps', 3),
    ('optimizer.learning_rate=1', 'optimizer.learning_rate', 1.0),
    ('evaluation.every=4', 'evaluation.every', 4),
    ('plugins=json', 'plugins', ('json',)),
    # Optional fields, and options of any type, may be emptied.
    ('student.init=None', 'student.init', None),
    ('student.used_classes=None', 'student.used_classes', None),
    ('student.options.hidden=None', 'student.options.hidden', None),
    ('teacher.options.bias=None', 'teacher.options.bias', None),
    # What was None or a whole number may become anything.
    ('losses.y.options.text=abc', 'losses.y.options.text', 'abc'),
    ('losses.y.options.share=0.5', 'losses.y.options.share', 0.5),
))
def test_field_may_be_overridden_by_a_value_of_its_type(
    seen, tiny, tmp_path, flag, path, value):
  term = ("config.losses.y = dict(loss='x', layers='last', weight=1.0, "
          "options=dict(text=None, share=1))")
  path_of_config = tmp_path / 'open.py'
  path_of_config.write_text(
      tiny.read_text().replace('  return', f'  {term}\n  return'))
  field = seen(f'--config={path_of_config}', f'--config.{flag}')
  for name in path.split('.'):
    field = field[name]
  assert field == value and type(field) is type(value)


def test_none_may_be_an_argument_of_its_own(seen, tiny):
  config = seen('--config', tiny, '--config.student.init', 'None')
  assert config.student.init is None


def test_all_fields_of_a_term_may_come_from_the_command_line(seen, tiny):
  config = seen(f'--config={tiny}', '--config.losses.x.loss=feature_matching',
                '--config.losses.x.weight=0.5', '--config.losses.x.layers=last',
                '--config.losses.x.align_options.mode=mean')
  assert config.losses.x.to_dict() == dict(
      loss='feature_matching', weight=0.5, layers='last',
      align_options=dict(mode='mean'))


def test_no_before_a_flag_means_false(seen, tiny):
  assert seen(f'--config={tiny}', '--config.baseline').baseline is True
  assert seen(f'--config={tiny}', '--noconfig.baseline').baseline is False


def test_overrides_may_come_before_the_config(seen, tiny):
  config = seen('--config.steps', 3, '--config', f'{tiny}:smoke')
  assert (config.steps, config.log_every) == (3, 2)


@pytest.mark.parametrize('form', ('--config={}', '-config={}', '--config {}',
                                  '-config {}'))
def test_plugin_beside_the_config_is_imported(seen, tiny, form):
  config = seen(*form.format(tiny).split(' '), '--config.plugins=my_plugin')
  assert config.plugins == ('my_plugin',)
  assert 'my_plugin' in sys.modules


def test_config_may_be_locked_and_is_locked_afterwards(seen, tiny):
  tiny.write_text(tiny.read_text().replace('  return', '  config.lock()\n'
                                           '  return'))
  config = seen(f'--config={tiny}', '--config.student.options.dropout=0.1')
  with pytest.raises(AttributeError, match='stepz'):
    config.stepz = 3


def test_help_lists_flags_and_exit_codes(capsys):
  assert launch.main(['launch', '--help']) == 0
  out = capsys.readouterr().out
  for word in ('--config', '--workdir', '--mode', '--seeds', 'Exit codes',
               '1 a bug'):
    assert word in out
  assert launch.main(['launch']) == 0


def test_interrupt_says_how_to_resume(run, monkeypatch):

  def interrupted(*unused):
    raise KeyboardInterrupt

  monkeypatch.setattr(job, 'train', interrupted)
  code, _, err = run()
  assert code == 130
  assert err == ('haikd: interrupted; start it again to resume from the newest '
                 'checkpoint.\n')


@pytest.mark.parametrize('flag, shown', (('--debug', True), ('--debug=true',
                                         True), ('--debug=false', False)))
@pytest.mark.parametrize('error, code', ((KeyError('no "x"'), 1),
                                         (checks.DataError('no data'), 3)))
def test_debug_shows_the_traceback(run, monkeypatch, flag, shown, error, code):

  def broken(*unused):
    raise error

  monkeypatch.setattr(job, 'train', broken)
  exit_code, _, err = run(flag)
  assert exit_code == code
  assert ('Traceback' in err and 'in broken' in err) == shown
  if not shown and code == 1:
    assert err == ('haikd: KeyError: no "x"; run with --debug for the traceback'
                   '\n')


@pytest.fixture
def cache(run, monkeypatch, tmp_path):
  """Starts a job that does nothing; returns the folder of the cache."""
  monkeypatch.setattr(job, 'train', lambda *unused: None)
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path))
  names = ('jax_compilation_cache_dir',
           'jax_persistent_cache_min_compile_time_secs')
  before = {name: getattr(jax.config, name) for name in names}

  def start(**variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, str(value))
    jax.config.update('jax_compilation_cache_dir', None)
    code, _, err = run()
    assert (code, err) == (0, '')
    return jax.config.jax_compilation_cache_dir

  yield start
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_cached_for_the_user(cache, tmp_path):
  assert cache() == str(tmp_path / '.cache/haikd/compiled')
  folder = tmp_path / 'other'
  assert cache(XDG_CACHE_HOME=folder) == str(folder / 'haikd/compiled')
  assert (folder / 'haikd/compiled').is_dir()


def test_jax_own_variable_for_its_cache_is_left_to_jax(cache, tmp_path):
  # JAX reads the variable when it is imported, so haikd must set nothing.
  assert cache(JAX_COMPILATION_CACHE_DIR=tmp_path / 'other') is None
  assert not (tmp_path / '.cache').exists()


def test_only_programs_that_take_long_to_compile_are_cached(
    cache, monkeypatch):
  cache()  # tests/conftest.py sets JAX's own variable, which applies.
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
  monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
  cache()
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.5


def test_cache_that_cannot_be_written_is_not_used(
    cache, monkeypatch, tmp_path):
  (tmp_path / 'file').touch()
  assert cache(XDG_CACHE_HOME=tmp_path / 'file') is None
  with monkeypatch.context() as patch:
    patch.setattr(os, 'access',
                  lambda path, mode: 'read-only' not in str(path))
    assert cache(XDG_CACHE_HOME=tmp_path / 'read-only') is None

  def no_home():
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.setattr(launch.pathlib.Path, 'home', no_home)
  assert cache(XDG_CACHE_HOME='') is None


def write_fashion(folder, *, train, test):
  """Writes the four idx files of Fashion-MNIST, with noise as images."""
  rng = np.random.default_rng(0)
  for part, size in (('train', train), ('t10k', test)):
    for name, array in (('images-idx3', rng.integers(0, 256, (size, 28, 28))),
                        ('labels-idx1', np.arange(size) % 10)):
      header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape,
                                                       '>u4').tobytes()
      (folder / f'{part}-{name}-ubyte').write_bytes(
          header + array.astype(np.uint8).tobytes())


# What takes seconds to compile or run is made smaller.
SMALLER = dict(
    digits_fitnets=('baseline=False',),
    digits_plugin=('teacher.options.depth=1', 'student.options.depth=1',
                   'baseline=False'),
    digits_tinybert=('teacher.options.depth=1', 'student.options.depth=1',
                     'baseline=False'),
    digits_vit_from_vit=('teacher.options.depth=2', 'student.options.depth=1'),
    fashion_convnet_from_resnet=('teacher.options.channels=(4, 8, 8)',
                                 'teacher.options.stem=4', 'baseline=False'))


# published_sizes_test.py and fetched_data_test.py run the configs that need a
# trained teacher or downloaded data, task_jobs_test.py those of other tasks,
# run/sweep_test.py those of methods. Stages are those of digits_fitnets.py too.
@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name == 'digits_tinybert'))
    for name in sorted(p.stem for p in CONFIGS.glob('*.py'))
    if not name.startswith(
        ('c4_', 'imagenet_', 'sentences_', 'austen_', 'friedman_', 'documents_',
         'scenes_')) and not name.endswith('_methods')])
def test_smoke_variant_of_config_runs(fresh, name, tmp_path, capsys):
  argv = ['launch', f'--config={CONFIGS / name}.py:smoke',
          f'--workdir={tmp_path / "run"}',
          *(f'--config.{flag}' for flag in SMALLER.get(name, ()))]
  if name.startswith('fashion'):  # A tenth is held out; :smoke uses 64 of it.
    write_fashion(tmp_path, train=640, test=64)
    argv += [f'--config.data.source_dir={tmp_path}',
             f'--config.data.data_dir={tmp_path / "prepared"}']
  code = launch.main(argv)
  assert code == 0, capsys.readouterr().err
  results = json.loads((tmp_path / 'run/result.json').read_text())
  alone = ['student_alone'] * ('baseline=False' not in SMALLER.get(name, ()))
  assert list(results) == ['teacher', *alone, 'student']


def test_module_runs_as_a_program_and_prints_no_warnings(tiny, tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'haikd.launch', f'--config={tiny}:smoke'],
      capture_output=True, text=True, cwd=tmp_path, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stderr == ''
  assert (tmp_path / 'runs/tiny-smoke/result.json').exists()


def test_package_is_a_program_whose_reader_may_go(tmp_path):
  """`python -m haikd` says in one line that JAX finds no such platform."""
  config = f'--config={CONFIGS / "digits_mlp_from_convnet.py"}'
  for command, code, says in (
      ([config], 2, 'haikd: JAX_PLATFORMS must name a platform'),
      (['--help'], 128 + 13, '')):
    with subprocess.Popen(
        [sys.executable, '-m', 'haikd', *command], cwd=tmp_path, text=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cuda', 'PYTHONUNBUFFERED': '1'},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
      if code != 2:
        process.stdout.close()
      err = process.stderr.read()
    assert process.returncode == code, err
    assert err.startswith(says) and err.count('\n') == bool(says)


def test_a_line_comes_before_what_is_slow_to_import(tmp_path):
  """It takes 1 to 2 seconds until then; the deadline is 3."""
  (tmp_path / 'x.py').write_text(
      'from haikd import config\n\ndef get_config():\n'
      '  return config.base()\n')
  done = subprocess.run(
      [sys.executable, '-c', 'import sys; sys.modules["haikd.run.job"] = None;'
       'from haikd import launch; sys.exit(launch.main())', '--config=x.py'],
      cwd=tmp_path, capture_output=True, text=True, check=False)
  assert done.stdout == 'compiling x.py for runs/x\n'
  assert done.returncode == 1 and 'haikd.run.job' in done.stderr
  slow = ('orbax', 'tensorboard', 'grain', 'scipy.stats', 'PIL')
  done = subprocess.run(
      [sys.executable, '-c', 'import sys; from haikd import launch; '
       f'print(*set({slow}) & set(sys.modules))'],
      capture_output=True, text=True, check=False)
  assert done.stdout == '\n', done.stderr


def test_formats_are_those_that_are_exported():
  assert tuple(export.FOLDERS) == launch_flags.FORMATS


def test_a_config_of_haikd_is_named(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert launch.main(['launch', '--config=haikd:digits_mlp']) == 2
  err = capsys.readouterr().err
  assert "got 'digits_mlp'. Did you mean 'digits_" in err
  assert 'Known: austen_draft, austen_llama_from_smollm2, austen_' in err
  # The file is found, and the variant reaches it; the folder has its name.
  name = 'haikd:digits_mlp_from_convnet:smoke'
  assert launch.main(['launch', f'--config={name}', '--mode=eval']) == 3
  assert 'got runs/digits_mlp_from_convnet-smoke' in capsys.readouterr().err


@pytest.mark.slow
def test_a_wheel_has_the_configs(tmp_path):
  """`pip install haikd` and one command, without a clone."""
  root, source = CONFIGS.parent, tmp_path / 'source'
  for name in ('haikd', 'configs'):
    shutil.copytree(root / name, source / name, symlinks=True)
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(root / name, source)
  pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
  subprocess.run([*pip, 'wheel', '.', '--no-deps', '-w', tmp_path], cwd=source,
                 check=True)
  wheel, = tmp_path.glob('haikd-*.whl')
  subprocess.run([*pip, 'install', wheel, '--no-deps', '--target',
                  tmp_path / 'site'], check=True)
  done = subprocess.run(
      [sys.executable, '-m', 'haikd', '--config=haikd:digits_plugin:smoke',
       '--config.steps=2', '--config.teacher.train.steps=2'],
      cwd=tmp_path, capture_output=True, text=True, check=False,
      env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')})
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'runs/digits_plugin-smoke/result.json').exists()


def test_command_is_the_program():
  setup = configparser.ConfigParser()
  setup.read(CONFIGS.parent / 'setup.cfg')
  line, = setup['options.entry_points']['console_scripts'].split('\n')[1:]
  entry = metadata.EntryPoint(*line.split(' = '), group='console_scripts')
  assert entry.name == 'haikd' and entry.load() is program.run


def test_a_changed_config_goes_on_where_that_is_allowed(run, tmp_path):
  assert run()[0] == 0
  changed = '--config.optimizer.learning_rate=0.5', '--config.steps=10'
  code, _, err = run(*changed)
  assert code == 3 and 'learning_rate=0.5 where it has 0.001' in err
  assert '--allow_config_change' in err
  code, _, err = run(*changed, '--allow_config_change')
  assert code == 0, err
  assert 'goes on with another config: config.optimizer.learning_rate' in err
  assert [row['step'] for row in rows(tmp_path / 'run')
          if row['split'] == 'train'] == [*range(1, 11)]
  changes = json.loads(
      (tmp_path / 'run/config_changes.jsonl').read_text())['changes']
  assert changes == {'optimizer.learning_rate': [0.001, 0.5], 'steps': [8, 10]}
  code, _, err = run('--allow_config_change', '--seeds=2', workdir='other')
  assert code == 2 and '--seeds must be left out with --allow_config' in err


def test_what_validation_says_is_printed(run):
  code, _, err = run(
      '--config.losses.x={"loss": "logit_mse", "weight": -0.1}')
  assert code == 0
  assert 'config.losses.x.weight is negative, so that training raises' in err


@pytest.mark.parametrize('closed', ('>&-', '2>&-', '<&- >&- 2>&-'))
def test_what_is_closed_is_the_null_device(closed):
  """Else a file of the run would get its number, and what XLA prints."""
  script = ('import os, sys; from haikd import launch; '
            'launch.main(["launch", "--help"]); null = os.stat(os.devnull); '
            'sys.exit(sum(os.path.samestat(os.fstat(i), null) << i '
            'for i in range(3)))')
  code = subprocess.run(
      ['sh', '-c', f'exec "$@" {closed}', '', sys.executable, '-c', script],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      check=False).returncode
  assert code == {'>&-': 2, '2>&-': 4}.get(closed, 7)
