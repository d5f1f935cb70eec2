"""The benchmark, and with its steps by hand a check of the whole step."""

import ast
import functools
import json
import math

import jax
import numpy as np
import pytest

from haikd.bench import __main__ as bench
from haikd.bench import cases
from haikd.bench import host
from haikd.bench import measure
from haikd.bench import ours
from haikd.bench import summary

LLAMAS = dict(
    student=('llama', dict(width=8, depth=1, heads=2, hidden=12)),
    teacher=('llama', dict(width=16, depth=2, heads=4, hidden=20)))
VIT = dict(patch_size=4, mlp_ratio=2.0, pool='mean')
VITS = dict(
    student=('vit', dict(VIT, width=8, depth=1, heads=1)),
    teacher=('vit', dict(VIT, width=16, depth=2, heads=2)))
CONVNETS = dict(
    student=('convnet', dict(channels=(2, 3))),
    teacher=('convnet', dict(channels=(4, 5))))

# 70 positions are two blocks of queries; rows are 56 and 42 long.
TEXT = cases.CASES['attention'] | LLAMAS | dict(shape=(2, 70), classes=20)
IMAGES = cases.CASES['digits_vit_matching'] | dict(shape=(3, 8, 8, 1))
TINY = dict(
    text=TEXT,
    fused=TEXT | dict(reference='fused'),
    vit=IMAGES | VITS,
    mlp=cases.CASES['digits_mlp'] | dict(
        shape=(3, 8, 8, 1), student=('mlp', dict(hidden=(5,))),
        teacher=CONVNETS['teacher']),
    convnet=cases.CASES['fashion_convnet'] | CONVNETS | dict(
        shape=(3, 8, 8, 1)),
    loss_logits=cases.CASES['loss_logits_8k'] | dict(
        classes=20, shape=(8, 5), reference='fused'),
    loss_attention=cases.CASES['loss_attention_1k'] | dict(shape=(2, 6)),
)


def two_steps(function, state, fixed):
  """Returns the losses of two steps, and the student after the second."""
  losses = []
  for _ in range(2):
    state, outputs = function(state, *fixed)
    losses.append(float(outputs['loss']))
  return losses, state


@pytest.fixture(scope='module')
def haikd(tmp_path_factory):
  """Returns the file, losses and state of a case; of each once."""
  folder = tmp_path_factory.mktemp('arrays')

  @functools.cache
  def run(name):
    path = folder / f'{name}.npz'
    return path, *two_steps(*ours.build(complete(name), path))

  return run


def complete(name):
  return dict(reference='materialised', padding=0.3) | TINY[name]


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name == 'vit'))
    for name in TINY])
def test_haikd_steps_as_one_would_by_hand(name, haikd, monkeypatch):
  monkeypatch.syspath_prepend(measure.find_references())
  import by_hand
  case = complete(name)
  path, losses, state = haikd('text' if name == 'fused' else name)
  by_hand_losses, (params, moving, *_) = two_steps(*by_hand.build(case, path))
  np.testing.assert_allclose(losses, by_hand_losses, rtol=1e-5)
  flat, means = (
      {f'{module}/{name}': value
       for module, values in tree.items() for name, value in values.items()}
      for tree in (state.params.student, state.net_state))
  jax.tree.map(functools.partial(
      np.testing.assert_allclose, rtol=1e-4, atol=1e-5), means, moving)
  assert flat.keys() == params.keys()
  for key, value in flat.items():
    if not key.endswith('key/b'):  # Every map is blind to it: it has rounding
      # in place of a gradient, of which Adam makes a step as of any other.
      np.testing.assert_allclose(
          value, params[key], rtol=0, atol=1e-3 * case['optimizer'][1],
          err_msg=key)


def test_steps_by_hand_know_nothing_of_haikd():
  files = list((measure.find_references() / 'by_hand').glob('*.py'))
  assert len(files) > 3
  for path in files:
    for node in ast.walk(ast.parse(path.read_text())):
      names = [x.name for x in getattr(node, 'names', []) if hasattr(x, 'name')]
      assert not any('haikd' in x for x in names), path
      assert 'haikd' not in (getattr(node, 'module', None) or ''), path


def test_rows_are_ragged_around_the_padding():
  # 8 x (1 - 0.25 -+ 0.125).
  assert cases.lengths_of(3, 8, 0.25).tolist() == [7, 6, 5]
  assert cases.lengths_of(4, 8, 0.0).tolist() == [8] * 4


def test_labels_are_the_tokens_that_follow():
  batch = cases.batch_of(cases.CASES['logits'] | dict(
      shape=(3, 8), padding=0.25))
  assert batch.mask.sum(axis=1).tolist() == [7, 6, 5]
  for row, length in enumerate((7, 6, 5)):
    np.testing.assert_array_equal(batch.labels[row, :length - 1],
                                  batch.inputs[row, 1:length])
    assert set(batch.labels[row, length - 1:]) == {-100}


def timed(wall, cpu, peak=2**20):
  return dict(wall=wall, cpu=cpu, steps=2, peak_bytes=peak, waiting=wall / 4)


def found(losses=(1.0, 0.5)):
  first = dict(losses=losses, first_step_seconds=3.0, temp_bytes=2**21,
               compiling=[0.25, 0.125, 2.0])
  return dict(
      haikd=first,
      reference=dict(first, first_step_seconds=2.0, temp_bytes=2**20),
      rounds=[
          dict(haikd=timed(2.0, 4.0), reference=timed(1.0, 1.0, 2**19)),
          dict(haikd=timed(2.0, 3.0), reference=timed(4.0, 2.0)),
          dict(haikd=timed(3.0, 2.0, 2**22), reference=timed(3.0, 2.0)),
      ])


def test_medians_are_of_the_ratios_of_rounds():
  got = summary.summarise(found())
  # Wall 2, 1/2, 1; CPU 4, 3/2, 1.
  assert got['ratios']['wall'] == dict(median=1.0, least=0.5, most=2.0)
  assert got['ratios']['cpu'] == dict(median=1.5, least=1.0, most=4.0)
  assert got['ratios']['first_step_seconds'] == 1.5
  assert got['ratios']['temp_bytes'] == 2.0
  assert got['ratios']['peak_bytes'] == 4.0
  assert got['haikd']['step_seconds'] == 1.0  # Of 2, 2 and 3 s for two steps.


def test_row_has_a_cell_for_each_column():
  row = summary.row('logits', found())
  assert len(row) == len(summary.COLUMNS)
  assert row[1] == '1.500 (1.000-4.000)'
  assert row[-1] == '4 / 1'
  assert row[5:7] == ['25% / 25%', '0.2+0.1+2.0 / 0.2+0.1+2.0']


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
  """Runs the command line; returns (exit code, out, err)."""
  monkeypatch.setattr(measure, 'SECONDS', 0.01)
  monkeypatch.chdir(tmp_path)

  def call(*args):
    code = bench.main(['bench', *args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err

  return call


def test_command_measures_and_writes_every_round(run, monkeypatch, tmp_path):
  monkeypatch.setitem(cases.CASES, 'tiny', TINY['loss_attention'])
  code, out, err = run('--case=tiny', '--rounds=3', '--cores=1')
  assert (code, err) == (0, '')
  assert 'tiny' in out and 'CPU time' in out
  content = json.loads((tmp_path / 'runs' / 'bench.json').read_text())
  assert content['command'].endswith(
      'haikd.bench --case=tiny --rounds=3 --cores=1')
  assert content['jax'] == jax.__version__
  assert content['machine']['cores'] > 0
  case = content['cases']['tiny']
  assert case['case']['padding'] == 0.25
  assert len(case['rounds']) == 3
  for side in measure.SIDES:
    assert case[side]['first_step_seconds'] > 0
    assert case[side]['temp_bytes'] >= 0
    for got in case['rounds']:
      assert got[side]['steps'] >= 2 and got[side]['cpu'] > 0
      assert got[side]['peak_bytes'] > 2**25  # Python and jax alone.
  assert math.isclose(
      *(case[side]['losses'][1] for side in measure.SIDES), rel_tol=1e-4)


SMALL = dict(
    evaluation=TEXT | dict(kind=cases.EVALUATION),
    decoding=cases.CASES['decoding'] | dict(
        shape=(4, 16, 16, 3), files=10, side=32),
    preparation=cases.CASES['preparation'] | dict(
        shape=(20, 8), words=30, classes=300),
    fed_vision=cases.CASES['fed_vision'] | VITS | dict(
        shape=(4, 16, 16, 3), files=10, side=32),
)


@pytest.mark.parametrize('name', SMALL)
def test_what_is_not_a_step_alone_is_measured(
    name, run, monkeypatch, tmp_path):
  monkeypatch.setitem(cases.CASES, name, SMALL[name])
  code, out, err = run(f'--case={name}', '--rounds=3', '--cores=1')
  assert (code, err) == (0, '')
  assert name in out and 'waiting for data' in out
  content = json.loads((tmp_path / 'runs' / 'bench.json').read_text())
  case = content['cases'][name]
  compiled = name in ('evaluation', 'fed_vision')
  for side in measure.SIDES:
    assert case['summary'][side]['step_seconds'] > 0
    assert all(x > 0 for x in case[side]['compiling']) == compiled
  shares = [case['summary'][side]['waiting'] for side in measure.SIDES]
  assert (0 < shares[0] < 1, shares[1]) == (name == 'fed_vision', 0)


def test_both_sides_of_a_preparation_encode_the_same_texts(
    tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(measure.find_references())
  import by_hand
  path = tmp_path / 'arrays.npz'
  case = SMALL['preparation'] | dict(reference='materialised')
  sides = [ours.build(case, path), by_hand.build(case, path)]
  ends, tokens = (step(state)[1]['loss'] for step, state, _ in sides)
  assert ends == tokens + 20  # Each text has an end in haikd's rows.


def test_both_sides_of_decoding_give_the_same_size_and_scale(
    tmp_path, monkeypatch):
  case = SMALL['decoding']
  host.write_images(tmp_path, case)
  # The time of processes of their own would not be measured.
  assert host._config(tmp_path, case).data.workers == 0
  batch = next(host.read_images(tmp_path, case))
  images = batch.view('student').inputs
  assert images.shape == case['shape']
  low, high = (0 - 0.45) / 0.25, (1 - 0.45) / 0.25
  assert low <= images.min() < images.max() <= high


def test_sides_that_disagree_are_not_timed(run, monkeypatch):
  answers = iter([dict(losses=[1.0, 0.5]), dict(losses=[1.0, 0.6])])
  monkeypatch.setattr(measure.Worker, 'ask', lambda *_, **__: next(answers))
  code, _, err = run('--case=logits')
  assert code == 1
  assert err == (
      'haikd: both sides must compute the same loss; got 0.5 from '
      'haikd and 0.6 by hand in step 2. Nothing was timed.\n')


def test_a_divergence_is_compared_with_the_same_step_of_kl(monkeypatch):
  orders = []

  def ask(self, **order):
    orders.append(order)
    return dict(losses=[1.0, len(orders)], wall=1.0)

  monkeypatch.setattr(measure.Worker, 'ask', ask)
  case = cases.choose(['divergence_js'], 'materialised', 0.0)['divergence_js']
  measure.run(case, rounds=3, cores=None)
  first, second = (order for order in orders if 'module' in order)
  assert first['module'] == second['module'] == 'haikd.bench.ours'
  assert second['case'] == first['case'] | dict(loss='kl_divergence')
  for name, order in (('jensen_shannon', first), ('kl_divergence', second)):
    config = ours.config_of(order['case'])
    assert config.distillation.alpha is None
    term, = config.losses.values()
    assert (term['loss'], term['options']['temperature']) == (name, 2.0)


def test_records_take_the_place_of_the_teacher_of_the_same_step(tmp_path):
  case = TEXT | dict(
      loss='kl_divergence', padding=0.0, attention=False, features=False,
      records=dict(kind='sampled', exact=2, draws=3, bits=8, temperature=2.0))
  assert cases.baseline(case) == {
      name: value for name, value in case.items() if name != 'records'}
  _, _, (frozen, batch) = ours.build(case, tmp_path / 'arrays.npz')
  assert not jax.tree.leaves(frozen)
  assert batch.teacher.ids.shape == (*case['shape'], 5)


def test_side_that_ends_is_told_in_one_line(run, monkeypatch):
  broken = TEXT | dict(student=('llama', dict(width=7, heads=2)))
  monkeypatch.setitem(cases.CASES, 'broken', broken)
  code, _, err = run('--case=broken')
  assert code == 1
  assert 'the step of haikd ended early: ConfigError: ' in err
  assert 'heads must divide width' in err
  assert err.count('\n') == 1


def test_list_names_every_case_with_a_line(run):
  code, out, _ = run('--list')
  assert code == 0
  assert [line.split()[0] for line in out.splitlines()] == list(cases.CASES)
  assert all(len(line) <= 80 for line in out.splitlines())


def test_help_lists_flags_and_cases(run):
  code, out, _ = run('--help')
  assert code == 0
  assert '--padding' in out and 'loss_logits_150k' in out


@pytest.mark.parametrize('args, match', (
    (['--case=logit'], "--case must be a known name; got 'logit'. Did you mean "
     "'logits'?"),
    (['--case=logits,'], "--case must be a known name; got ''"),
    (['--case=vision', '--reference=fused'],
     '--reference must be materialised for --case=vision'),
    (['--reference=fast'],
     '--reference must have a legal value; got --reference=fast'),
    (['--rounds=2'], '--rounds must have a legal value; got --rounds=2'),
    (['--cores=9999'], '--cores must be at most'),
    (['--padding=1'], '--padding must be at least 0 and below 1; got'),
    (['--steps=3'], 'every flag must be valid; got'),
    (['logits'], "every argument must be a flag; got 'logits'"),
))
def test_wrong_use_is_one_line(run, args, match):
  code, _, err = run(*args)
  assert code == 2
  assert err.startswith('haikd: ') and err.count('\n') == 1
  assert match in err


def test_without_a_clone_it_says_where_to_run(run, monkeypatch, tmp_path):
  monkeypatch.setattr(measure, 'ROOT', tmp_path)
  code, _, err = run('--case=logits')
  assert code == 2
  assert 'run the benchmark in a clone of the repository' in err


def test_cases_chosen_for_fused_are_those_it_is_written_for():
  names = cases.choose([], 'fused', 0.0)
  assert 'logits' in names and 'vision' not in names
  assert set(cases.choose([], 'materialised', 0.0)) == set(cases.CASES)
