"""The command line, from a config file to the table, and every wrong use."""

import json
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from haikd import launch
from haikd import registry

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'

TINY = """
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


@pytest.fixture(autouse=True)
def clean():
  path, modules = list(sys.path), set(sys.modules)
  with registry.losses.temporary(), registry.datasets.temporary():
    yield
  sys.path[:] = path
  for name in set(sys.modules) - modules:
    if name.startswith(('my_', 'digits_')):
      del sys.modules[name]


@pytest.fixture
def run(tmp_path, capsys):
  """Runs a config in a folder of its own; returns (exit code, out, err)."""
  (tmp_path / 'my_plugin.py').write_text(textwrap.dedent(PLUGIN))
  (tmp_path / 'tiny.py').write_text(textwrap.dedent(TINY))

  def call(*args, workdir='run', config='tiny.py'):
    argv = ['launch', f'--config={tmp_path / config}',
            f'--workdir={tmp_path / workdir}', *args]
    code = launch.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err

  return call


def rows(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_job_trains_and_reports_all_three(run, tmp_path):
  code, out, err = run('--config.baseline=True')
  assert (code, err) == (0, '')
  results = json.loads((tmp_path / 'run/result.json').read_text())
  assert list(results) == ['teacher', 'student_alone', 'student']
  for row in results.values():
    assert set(row) == {'parameters', 'accuracy', 'cross_entropy', 'kl',
                        'agreement', 'seconds'}
  # 16 x 8 + 8, 8 x 8 + 8 and 8 x 3 + 3; 16 x 4 + 4 and 4 x 3 + 3.
  assert results['teacher']['parameters'] == 136 + 72 + 27
  assert results['student']['parameters'] == 68 + 15
  assert results['teacher']['agreement'] == 1
  assert abs(results['teacher']['kl']) < 1e-6
  assert 'student distilled' in out and 'teacher' in out
  own = [row for row in rows(tmp_path / 'run') if row['split'] == 'train']
  assert [row['step'] for row in own] == [2, 4, 6, 8]
  assert {'loss', 'loss/kl_divergence', 'loss/cross_entropy', 'grad_norm',
          'learning_rate', 'examples_per_second'} <= set(own[0])
  assert list((tmp_path / 'run').glob('events.out.tfevents.*'))


def test_finished_job_is_not_trained_again(run, tmp_path):
  assert run()[0] == 0
  before = (tmp_path / 'run/metrics.jsonl').read_bytes()
  results = json.loads((tmp_path / 'run/result.json').read_text())
  assert run()[0] == 0
  assert (tmp_path / 'run/metrics.jsonl').read_bytes() == before
  again = json.loads((tmp_path / 'run/result.json').read_text())
  for name in results:
    del results[name]['seconds'], again[name]['seconds']
  assert results == again


def test_eval_gives_what_training_gave(run, tmp_path):
  assert run('--config.baseline=True')[0] == 0
  trained = json.loads((tmp_path / 'run/result.json').read_text())
  (tmp_path / 'run/result.json').unlink()
  assert run('--mode=eval')[0] == 0
  evaluated = json.loads((tmp_path / 'run/result.json').read_text())
  for name, row in trained.items():
    for metric in set(row) - {'seconds'}:
      np.testing.assert_allclose(evaluated[name][metric], row[metric])


def test_plugin_beside_the_config_is_found(run):
  code, _, err = run('--config.plugins=my_plugin', '--config.data.name=spoilt',
                     '--config.data.options={}')
  assert (code, err) == (0, '')


def test_another_run_serves_as_teacher_and_as_start(run, tmp_path):
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


@pytest.mark.parametrize('args, code, match', (
    (['--config.stepz=3'], 2, 'Did you mean "steps"'),
    (['--config.steps=three'], 2, "--config.steps=three: invalid literal"),
    (['--config.distillation.alpha=2.0'], 2, 'must lie between 0 and 1'),
    (['--config.student.model=mpl'], 2, "got 'mpl'. Did you mean 'mlp'"),
    (['--config.data.name=synthetik'], 2, 'synthetic'),
    (['--config.student.options.hiden=3'], 2, 'hiden'),
    (['--config.distillation.use_feature_matching=True',
      '--config.distillation.feature_match_layers=(0, 7)'], 2, '7'),
    (['--config.teacher.options.num_classes=5'], 2, 'num_classes'),
    (['--config.batch_size=12'], 2, 'divisible by devices x microbatches'),
    (['--config.microbatches=3'], 2, 'divisible by devices x microbatches'),
    (['--config.teacher.train.steps=0'], 2, 'config.teacher must have weights'),
    (['--config.optimizer.name=adamm'], 2, "Did you mean 'adam"),
    (['--config.plugins=no_such_module'], 2, "got 'no_such_module'"),
    (['--mode=trian'], 2, '--mode=trian'),
    (['surplus'], 2, "got 'surplus'"),
    (['--config.data.train=training'], 3, "got split='training'"),
    (['--config.batch_size=64'], 3, 'must hold a batch or more'),
    (['--config.teacher.init=/no/such/run'], 3, 'must hold a checkpoint'),
    (['--mode=eval'], 3, 'Train first'),
    (['--config.plugins=my_plugin', '--config.data.name=spoilt',
      '--config.data.options={"what": "label"}'], 3, 'label'),
    (['--config.plugins=my_plugin', '--config.data.name=spoilt',
      '--config.data.options={"what": "nan"}'], 3, 'finite'),
    (['--config.optimizer.learning_rate=1e30',
      '--config.teacher.train.optimizer.learning_rate=1e30'], 4,
     'loss must stay finite; got'),
))
def test_wrong_use_prints_one_line(run, args, code, match):
  got, _, err = run(*args)
  assert err.count('\n') == 1 and err.startswith('haikd: '), err
  assert match in err
  assert got == code


@pytest.mark.parametrize('text, match', (
    ('def get_config():\n  return undefined', "name 'undefined' is not"),
    ('def get_config(:\n', 'invalid syntax'),
    ('import nothing_of_this_name', "No module named 'nothing_of_this_name'"),
    ('from haikd import config\ndef get_config():\n  c = config.base()\n'
     '  c.losses.x = dict(loss="kl_divergence", wait=1)\n  return c',
     "config.losses.x.wait must be a field of a loss term. Did you mean"),
    ('from haikd import config\ndef get_config():\n  c = config.base()\n'
     '  c.destilation = 3\n  return c', 'config.destilation must be a field'),
    ('from haikd import config\ndef get_config():\n  c = config.base()\n'
     '  c.losses.x = dict(loss="kl_divergens")\n  return c',
     "got 'kl_divergens'. Did you mean 'kl_divergence'"),
    ('from haikd import config\ndef get_config():\n  c = config.base()\n'
     '  c.distillation.use_attention_transfer = True\n'
     '  c.student.taps.attention = c.teacher.taps.attention = "attn*"\n'
     '  return c', "taps.attention must match a module; got 'attn*'"),
))
def test_wrong_config_file_prints_one_line(run, tmp_path, text, match):
  (tmp_path / 'wrong.py').write_text(text)
  code, _, err = run(config='wrong.py')
  assert err.count('\n') == 1 and err.startswith('haikd: '), err
  assert match in err
  assert code == 2


@pytest.mark.parametrize('config', ('none.py', 'tiny.py:smoky'))
def test_config_that_is_not_there_prints_one_line(run, config):
  code, _, err = run(config=config)
  assert code == 2 and err.count('\n') == 1


def test_workdir_of_another_config_is_refused(run, tmp_path):
  assert run()[0] == 0
  before = sorted(p for p in (tmp_path / 'run').rglob('*'))
  code, _, err = run('--config.distillation.temperature=3.0')
  assert code == 3
  assert 'config.distillation.temperature=3.0 where it has 2.0' in err
  assert sorted(p for p in (tmp_path / 'run').rglob('*')) == before
  assert run('--config.log_every=1')[0] == 0


def test_teacher_of_another_architecture_is_refused(run, tmp_path):
  assert run(workdir='first')[0] == 0
  code, _, err = run(f'--config.teacher.init={tmp_path / "first"}')
  assert code == 3
  assert 'config.teacher.init must hold the parameters of this network' in err


def test_diverged_run_keeps_its_last_good_checkpoint(run, tmp_path):
  code, _, err = run('--config.plugins=my_plugin',
                     '--config.losses={"x": {"loss": "explosive"}}')
  assert code == 4, err
  assert 'of student' in err
  assert not list((tmp_path / 'run/checkpoints').glob('[0-9]*'))
  assert list((tmp_path / 'run/teacher/checkpoints').glob('[0-9]*'))


def test_interrupt_says_how_to_go_on(run, monkeypatch):

  def interrupted(*unused):
    raise KeyboardInterrupt

  monkeypatch.setitem(launch._MODES, 'train', interrupted)
  code, _, err = run()
  assert code == 130
  assert 'start it again' in err


def test_help_says_what_there_is(capsys):
  assert launch.main(['launch', '--help']) == 0
  out = capsys.readouterr().out
  for word in ('--config', '--workdir', '--mode', 'Exit codes'):
    assert word in out
  assert launch.main(['launch']) == 0


@pytest.mark.parametrize(
    'name', ('digits_mlp_from_convnet', 'digits_vit_from_vit', 'digits_plugin'))
def test_smoke_variant_of_config_runs(name, tmp_path, capsys):
  code = launch.main([
      'launch', f'--config={CONFIGS / name}.py:smoke', f'--workdir={tmp_path}'
  ])
  assert code == 0, capsys.readouterr().err
  results = json.loads((tmp_path / 'result.json').read_text())
  assert list(results) == ['teacher', 'student_alone', 'student']


def test_every_config_has_a_smoke_test():
  tested = {'digits_mlp_from_convnet', 'digits_vit_from_vit', 'digits_plugin',
            'fashion_convnet_from_resnet'}
  assert {path.stem for path in CONFIGS.glob('*.py')} == tested


def test_module_runs_as_a_program_and_shows_no_noise(tmp_path):
  (tmp_path / 'tiny.py').write_text(textwrap.dedent(TINY))
  done = subprocess.run(
      [sys.executable, '-m', 'haikd.launch',
       f'--config={tmp_path / "tiny.py"}:smoke'],
      capture_output=True, text=True, cwd=tmp_path, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stderr == ''
  assert (tmp_path / 'runs/tiny-smoke/result.json').exists()
