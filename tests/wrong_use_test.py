"""Every wrong use of the command line prints one line and sets an exit code."""

import re

import pytest

from haikd import launch
from haikd.run import job

pytestmark = pytest.mark.mesh  # Messages have the number of devices.

# <field or argument> must <rule>; got <value>. <remedy>.
SHAPE = re.compile(
    r'haikd: (?![a-z_]+\.[a-z_]+: ).+ (must .+|is missing\. .+)\.\n')

FILE = """
from haikd import config as config_lib

def get_config(variant=''):
  config = config_lib.base()
"""


def assert_refused(outcome, code, match):
  exit_code, _, err = outcome
  assert SHAPE.fullmatch(err), err
  assert match in err
  assert exit_code == code


@pytest.mark.parametrize('args, code, match', (
    (['--config.stepz=3'], 2,
     "haikd: config.stepz must be a field of the base config. Did you mean "
     "'steps'? "),
    (['--config.optimizer.lr=1'], 2, 'config.optimizer.lr must be a field'),
    (['--config.studnt.options.x=1'], 2, "Did you mean 'student'?"),
    (['--config.steps.x=1'], 2, 'config.steps must be a dict to have a field'),
    (['--config.a-b=1'], 2, "haikd: config.a-b must be a path of fields, as "
     "config.data.name; got 'a-b'. Put other names in brackets"),
    (['--config.steps=three'], 2,
     'haikd: --config.steps must have a legal value; got --config.steps=three: '
     'invalid literal'),
    (['--config.steps=0'], 2, 'config.steps must be positive; got 0'),
    (['--config.seed=-1'], 2, 'config.seed must lie between 0 and 2 ** 32'),
    (['--config.evaluation.every=0'], 2, 'must be None or a positive int'),
    (['--config.distillation.alpha=2.0'], 2, 'must lie between 0 and 1'),
    (['--config.student.model=mpl'], 2, "got 'mpl'. Did you mean 'mlp'"),
    (['--config.data.name=synthetik'], 2, "Did you mean 'synthetic'"),
    (['--config.student.options.hiden=3'], 2, "Did you mean 'hidden'"),
    (['--config.losses.x.loss=kl_divergens'], 2,
     "got 'kl_divergens'. Did you mean 'kl_divergence'"),
    (['--config.losses.x.loss=feature_matching', '--config.losses.x.wait=1'], 2,
     "Did you mean 'weight'"),
    (['--config.losses.x={"loss": "feature_matching", "align": None}'], 2,
     "config.losses.x.align must name a registered aligner; got None. Write "
     "'none', in quotes"),
    (['--config.distillation.use_feature_matching=True',
      '--config.distillation.feature_match_layers=(0, 7)'], 2,
     'got student layer 7'),
    (['--config.losses.x.loss=feature_matching',
      '--config.student.taps.features=blok_*'], 2, "got 'blok_*'"),
    (['--config.student.taps.feature=block_*'], 2,
     'config.student.taps.feature must be a kind that some loss compares, or '
     "be called otherwise; got 'feature'. Did you mean 'features'?"),
    (['--config.student.taps.features=3'], 2,
     'config.student.taps must give a glob over names of modules'),
    (['--config.teacher.options.num_classes=5'], 2, 'differ by 2 classes'),
    (['--config.batch_size=12'], 2, 'divisible by replica x fsdp x'),
    (['--config.microbatches=3'], 2, 'divisible by replica x fsdp x'),
    (['--config.student.placement.mlp/up/w=-1'], 2,
     "in brackets; got no brackets. Write "
     "--config.student.placement['mlp/up/w']=….\n"),
    (['--config.losses.their/loss.weight=1'], 2,
     "Write --config.losses['their/loss'].weight=….\n"),
    (["--config.student.placement['nothing/w']=-1"], 2, "got 'nothing/w'"),
    (["--config.student.placement['linear/w']=2"], 2,
     'config.student.placement must give hidden_0/'),
    (['--config.student.options.dropout=much'], 2,
     "config.student.options.dropout must be of type float; got 'much'"),
    (['--config.optimizer.options.mu_dtype=flaot32'], 2,
     'config.optimizer.options.mu_dtype must be a dtype, such as float32'),
    (['--config.data.augment.flip.probability=2.0'], 2,
     'config.data.augment.flip.probability must lie between 0 and 1'),
    (['--config.student.init=hf:nowhere'], 3,
     'config.student.init must name a folder; got nowhere'),
    (['--config.mesh.tensor=2'], 2, 'must split some parameter'),
    (['--config.mesh.fsdp=3'], 2, 'must use all 8 devices'),
    (['--config.student.remat=full', '--config.student.remat_modules=x_*'], 2,
     "remat_modules must match a module that is called; got 'x_*'"),
    (['--topology=v5e:4x4'], 2,
     '--topology must be left out unless --mode=plan; got --mode=train'),
    (['--output=x'], 2,
     '--output must be left out unless --mode=export; got --mode=train'),
    (['--format=npz'], 2,
     '--format must be left out unless --mode=export; got --mode=train'),
    (['--mode=export', '--format=onnx'], 2,
     '--format must have a legal value; got --format=onnx: value should be '),
    (['--mode=export'], 2, "--format=hf must be of a model that transformers "
     "has; got 'mlp'. Use --format=stablehlo or --format=npz."),
    (['--mode=export', '--format=npz', '--output=x'], 3, 'Train first'),
    (['--mode=plan', '--topology=v9:4x4'], 2, "got 'v9:4x4'"),
    (['--config.teacher.train.steps=0'], 2, 'config.teacher must have weights'),
    (['--config.optimizer.name=adamm'], 2, "Did you mean 'adam"),
    (['--config.teacher.train.optimizer.name=adamm'], 2,
     'config.teacher.train.optimizer'),
    (['--config.plugins=no_such_module'], 2, "got 'no_such_module'"),
    (['--config.plugins=.relative'], 2, "got '.relative' (TypeError: "),
    (['--mode=trian'], 2,
     '--mode must have a legal value; got --mode=trian: value should be one '),
    (['--mod=eval'], 2,
     "--mod must be a known flag; got 'mod'. Did you mean 'mode'?"),
    (['--seeds=0'], 2, '--seeds must have a legal value; got --seeds=0: '),
    (['--seeds=3', '--mode=eval'], 2,
     '--seeds must be left out with --mode=eval; got --seeds=3'),
    (['surplus'], 2, "argument must be a flag; got 'surplus'"),
    (['--config.data.train=training'], 3,
     "config.data.train must name a split of the data set; got 'training'"),
    (['--config.batch_size=64'], 3, 'a split of at least one batch; got'),
    (['--config.teacher.init=/no/such/run'], 3, 'must hold a checkpoint'),
    (['--mode=eval'], 3, 'Train first'),
    (['--config.data.name=fashion', '--config.data.options={}'], 3,
     'source_dir must be the folder of the idx files'),
    (['--config.data.name=fashion', '--config.data.options={}',
      '--config.data.source_dir=/no/such/folder'], 3,
     "train-images-idx3-ubyte.gz; got '/no/such/folder', which does not."),
    (['--config.plugins=my_plugin', '--config.data.name=spoilt',
      '--config.data.options={"what": "label"}'], 3,
     'have a label below num_classes=3'),
    (['--config.plugins=my_plugin', '--config.data.name=spoilt',
      '--config.data.options={"what": "nan"}'], 3, 'have a finite image'),
    (['--config.data.std=1e-38'], 4,
     'must stay finite; got'),
))
def test_wrong_use_prints_one_line(run, tmp_path, args, code, match):
  if '--config.data.name=fashion' in args:
    args = [*args, f'--config.data.data_dir={tmp_path / "prepared"}']
  assert_refused(run(*args), code, match)


@pytest.mark.parametrize('lines, match', (
    ('  return undefined', "Error: name 'undefined' is not defined (line 6)"),
    ('  return config.update(', "SyntaxError: '(' was never closed"),
    ('  import nothing_of_this_name', "No module named 'nothing_of_this_name'"),
    ('  config.steps = "three"', 'TypeError'),
    ('  config.losses.x = dict(loss="kl_divergence", wait=1)\n  return config',
     'config.losses.x.wait must be a field of a loss term. Did you mean'),
    ('  config.destilation = 3\n  return config',
     'config.destilation must be a field of the base config. Did you mean'),
    ('  config.losses.x = dict(loss="kl_divergens")\n  return config',
     "got 'kl_divergens'. Did you mean 'kl_divergence'"),
    ('  config.distillation.use_attention_transfer = True\n'
     '  config.teacher.train.steps = 1\n'
     '  config.student.taps.attention = "attn*"\n'
     '  config.teacher.taps.attention = "attn*"\n'
     '  return config', "got 'attn*'"),
    ('  config.steps = 3', 'must return a ConfigDict; got NoneType'),
    ('  return dict(steps=3)', 'must return a ConfigDict; got dict'),
    ('  del config.plugins\n  return config',
     'config.plugins is missing. Start the config from haikd.config.base()'),
))
def test_wrong_config_file_prints_one_line(run, tmp_path, lines, match):
  (tmp_path / 'wrong.py').write_text(f'{FILE}{lines}\n')
  assert_refused(run(config='wrong.py'), 2, match)


@pytest.mark.parametrize('text, variant, match', (
    ('steps = 3\n', '', 'must have a function get_config; got none'),
    ('get_config = 3\n', '', 'must have a function get_config; got none'),
    ('def get_config():\n  pass\n', ':smoke',
     "got the variant 'smoke' for get_config(). Write `def get_config(variant"),
    ('def get_config(variant):\n  pass\n', '',
     'got no variant for get_config(variant)'),
))
def test_config_file_without_a_usable_get_config_is_refused(
    run, tmp_path, text, variant, match):
  (tmp_path / 'wrong.py').write_text(text)
  assert_refused(run(config=f'wrong.py{variant}'), 2, match)


@pytest.mark.parametrize('config, match', (
    ('none.py', "none.py'. Give its path"),
    ('', 'must name a file that can be read'),
    ('tiny.py:smoky',
     "variant of a config must be smoke or left out; got 'smoky'"),
))
def test_missing_config_or_variant_prints_one_line(run, config, match):
  assert_refused(run(config=config), 2, match)


@pytest.mark.parametrize('argv, match', (
    (['--mode=train'], '--config must name a config file; got None'),
    (['--config='], "--config must name a config file; got ''"),
    (['--config'], 'Missing value for flag --config'),
))
def test_config_must_be_given(capsys, argv, match):
  code = launch.main(['launch', *argv])
  assert_refused((code, *capsys.readouterr()), 2, match)


@pytest.mark.parametrize('text, reason', (
    ('def broken(:\n', 'SyntaxError: invalid syntax'),
    ('import haikd\nhaikd.no_such_name\n', 'AttributeError: '),
    ('import no_such_package\n', 'ModuleNotFoundError: '),
    ('1 / 0\n', 'ZeroDivisionError: division by zero'),
))
def test_broken_plugin_is_named_with_its_reason(run, tmp_path, text, reason):
  (tmp_path / 'my_broken.py').write_text(text)
  outcome = run('--config.plugins=my_broken')
  assert_refused(outcome, 2, "got 'my_broken' (")
  assert reason in outcome[2] and 'Fix that module' in outcome[2]


def test_registration_that_is_refused_is_named_with_its_module(run, tmp_path):
  (tmp_path / 'my_broken.py').write_text(
      'import haikd\n\n@haikd.register_loss(on="logits")\n'
      'def loss(x, y, *, mask):\n  pass\n')
  assert_refused(run('--config.plugins=my_broken'), 2,
                 'got loss(x, y, *, mask) of my_broken. Write')


def test_workdir_of_another_config_is_refused(run, tmp_path):
  assert run()[0] == 0
  before = sorted(p for p in (tmp_path / 'run').rglob('*'))
  assert_refused(
      run('--config.distillation.temperature=3.0'), 3,
      'config.distillation.temperature=3.0 where it has 2.0')
  assert sorted(p for p in (tmp_path / 'run').rglob('*')) == before
  assert run('--config.log_every=1')[0] == 0


def test_teacher_of_another_architecture_is_refused(run, tmp_path):
  assert run(workdir='first')[0] == 0
  assert_refused(
      run(f'--config.teacher.init={tmp_path / "first"}'), 3,
      'config.teacher.init must hold the parameters of this network')


def test_diverged_run_keeps_its_last_good_checkpoint(run, tmp_path):
  outcome = run('--config.plugins=my_plugin',
                '--config.losses.x.loss=explosive')
  assert_refused(outcome, 4, 'of student')
  assert not list((tmp_path / 'run/checkpoints').glob('[0-9]*'))
  assert list((tmp_path / 'run/teacher/checkpoints').glob('[0-9]*'))


def test_debug_works_even_if_another_flag_is_wrong(run):
  assert 'Traceback' in run('--debug', '--mode=trian')[2]
  assert 'Traceback' not in run('--mode=trian')[2]


def test_only_a_bug_ends_with_1(run, monkeypatch):

  def buggy(*unused):
    raise RuntimeError('this\nis a bug.')

  monkeypatch.setattr(job, 'train', buggy)
  code, _, err = run()
  assert code == 1
  assert err == ('haikd: RuntimeError: this is a bug; run with --debug for the '
                 'traceback\n')
