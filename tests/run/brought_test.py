"""What people bring, as they start it: each is right, or refused at once."""

import json
import re
import textwrap

import pytest

PLUGIN = """
    import haiku as hk
    import jax
    import jax.numpy as jnp
    import numpy as np
    import haikd
    from haikd import data

    SIZES = dict(train=32, validation=16, test=16)

    def draw(split, *shape):
      rng = np.random.default_rng(len(split))
      return rng.random((SIZES[split], *shape), np.float32)

    class Ragged:
      num_classes = 2
      def __init__(self, split):
        self.size = SIZES[split]
      def __len__(self):
        return self.size
      def __getitem__(self, i):
        return dict(image=np.zeros((4 + i % 2, 4, 1), np.float32),
                    label=np.zeros((4, 4), int))

    @haikd.register_dataset()
    def brought(split, kind):
      x = draw(split, 6)
      one_class = x.argmax(-1) % 3
      columns, num_classes = dict(x=x, label=one_class), 3
      if kind == 'numbers':
        label = x @ np.arange(6, dtype=np.float32) / 6
        columns, num_classes = dict(x=x, label=label), None
      if kind == 'vectors':
        columns, num_classes = dict(x=x, label=x[:, :2] * 3), None
      if kind == 'several':
        columns = dict(x=x, label=(x[:, :3] > 0.4).astype(np.float32))
      if kind == 'several_of_one':
        columns, num_classes = dict(
            x=x, label=(x[:, :1] > 0.4).astype(np.float32)), 1
      if kind == 'several_ints':
        columns = dict(x=x, label=(x[:, :3] > 0.4).astype(int))
      if kind == 'places':
        image = draw(split, 4, 4)
        columns = dict(image=image[..., None],
                       label=(image * 3).astype(int))
      if kind == 'tags':
        columns = dict(x=x, label=(x * 3).astype(int))
      if kind == 'names':
        columns['label'] = np.array(['cat', 'dog', 'eel'])[one_class]
      if kind == 'labels':
        columns['labels'] = columns.pop('label')
      if kind == 'weights':
        columns['sample_weight'] = np.ones(len(x), np.float32)
      if kind == 'two_inputs':
        columns['y'] = x
      if kind == 'uint8':
        columns['x'] = (draw(split, 4, 4, 1) * 255).astype(np.uint8)
      if kind == 'ragged':
        return Ragged(split)
      if kind == 'no_validation' and split == 'validation':
        raise KeyError(split)
      return data.Arrays(columns, num_classes=num_classes)

    @haikd.register_model(taps=dict(features='hidden'))
    def net(x, *, is_training, out=3, width=4, returns='logits'):
      if x.ndim == 4:  # An image: a class for each place.
        return hk.Conv2D(out, 1)(x)
      h = jax.nn.relu(hk.Linear(width, name='hidden')(x))
      logits = hk.Linear(out)(h)
      return dict(logits=logits, tuple=(logits, h), dict=dict(logits=logits),
                  none=None, flat=logits[:, 0])[returns]

    @haikd.register_model()
    def conv(x, *, is_training):
      return hk.Conv2D(3, 1)(x)

    @haikd.register_model()
    def tagger(x, *, is_training):
      return hk.Linear(3)(x[..., None])

    inner = hk.transform(lambda x: hk.Linear(3)(haikd.tap('hidden', x)))
    PARAMS = inner.init(jax.random.key(0), np.zeros((1, 6), np.float32))

    @haikd.register_model(taps=dict(features='hidden'))
    def constant(x, *, is_training):
      return inner.apply(PARAMS, None, x)

    @haikd.register_model(taps=dict(features='no_such_module'))
    def odd(x, *, is_training):
      return hk.Linear(3)(x)

    @haikd.register_model(taps=dict(features=('no_such_module', 'hidden')))
    def two_globs(x, *, is_training):
      return hk.Linear(3)(hk.Linear(4, name='hidden')(x))

    @haikd.register_loss(on='logits')
    def mse_labels(student, teacher=None, *, mask, labels=None):
      return haikd.masked_mean(jnp.square(student[..., 0] - labels), mask)
"""

CONFIG = """
    from haikd import config as config_lib

    def get_config(variant=''):
      config = config_lib.base()
      config.plugins = ('my_brought',)
      config.steps = 2
      config.batch_size = 8
      config.evaluation.batch_size = 16
      config.data.name = 'brought'
      config.data.options = dict(kind='classes')
      config.teacher.train.steps = 2
      config.teacher.model = config.student.model = 'net'
      return config
"""

STANDARD_TERMS = {
    'regression': ('logit_mse', 'mean_squared_error'),
    'multilabel': ('binary_kl', 'binary_cross_entropy'),
    'task=multilabel': ('binary_kl', 'binary_cross_entropy'),
}


@pytest.fixture
def start(run, tmp_path):
  """Runs a kind of data; returns the exit code, the results and stderr."""
  from haikd.core import registry
  (tmp_path / 'my_brought.py').write_text(textwrap.dedent(PLUGIN))
  (tmp_path / 'brought.py').write_text(textwrap.dedent(CONFIG))

  def call(kind, *flags):
    code, _, err = run(f'--config.data.options.kind={kind}',
                       *(f'--config.{flag}' for flag in flags),
                       config='brought.py')
    result = tmp_path / 'run' / 'result.json'
    assert 'could not be made' not in err  # The report.
    return code, json.loads(result.read_text()) if code == 0 else None, err

  with registry.models.temporary():
    yield call


# Metrics of classes that compare with a teacher.
TO_TEACHER = ('kl', 'reverse_kl', 'acceptance', 'agreement')

# What the report has on examples, by the kind of data.
SECTIONS = dict(
    numbers=['Predictions', 'Layers'], vectors=['Predictions', 'Layers'],
    several=['Labels', 'Reliability', 'Layers'],
    several_ints=['Labels', 'Reliability', 'Layers'],
    places=['Classes', 'Reliability'], tags=['Classes', 'Reliability'])


@pytest.mark.report
@pytest.mark.parametrize('kind, flags, says, names', (
    ('numbers', ('student.options.out=1', 'teacher.options.out=1'),
     'config.task is regression', {'mse', 'mae', 'r2', 'teacher_mse'}),
    ('vectors', ('student.options.out=2', 'teacher.options.out=2',
                 'baseline=True'),
     'config.task is regression', {'mse', 'mae', 'r2', 'teacher_mse'}),
    ('several', (), 'config.task is multilabel',
     {'accuracy', 'binary_cross_entropy', 'label_f1', 'binary_kl',
      'agreement'}),
    ('several_ints', ('task=multilabel',), '',
     {'accuracy', 'binary_cross_entropy', 'label_f1', 'binary_kl',
      'agreement'}),
    ('places', ('student.model=conv', 'teacher.model=conv'), '',
     {'accuracy', 'cross_entropy', 'f1', 'miou', *TO_TEACHER}),
    ('tags', ('task=dense', 'student.model=tagger', 'teacher.model=tagger'),
     '', {'accuracy', 'cross_entropy', 'f1', 'miou', *TO_TEACHER}),
    ('tags', ('task=tagging', 'student.model=tagger',
              'teacher.model=tagger'), '',
     {'accuracy', 'cross_entropy', 'f1', 'miou', *TO_TEACHER}),
))
def test_each_task_is_trained_and_has_its_terms_and_metrics(
    start, tmp_path, kind, flags, says, names):
  code, results, err = start(kind, *flags)
  assert code == 0, err
  assert says in err
  assert err.count('haikd: ') == bool(says)
  assert set(results['student']) == names | {'parameters', 'seconds'}
  soft, hard = STANDARD_TERMS.get(
      says.split()[-1] if says else flags[0], ('kl_divergence',
                                               'cross_entropy'))
  rows = map(json.loads,
             (tmp_path / 'run/metrics.jsonl').read_text().splitlines())
  assert {key for row in rows for key in row if key.startswith('loss/')} == {
      f'loss/{soft}', f'loss/{hard}'}
  page = (tmp_path / 'run/report.html').read_text()
  assert re.findall('<h2>(.*?)</h2>', page) == [
      'Results', 'Curves', *SECTIONS[kind],
      'Where student and teacher differ most', 'Time', 'How it was made']


def test_a_teacher_of_other_classes_teaches_features(start):
  code, results, err = start(
      'classes', 'teacher.options.out=7', 'distillation.alpha=0.0',
      'distillation.use_feature_matching=True')
  assert code == 0, err
  assert set(results['student']) == {
      'parameters', 'seconds', 'accuracy', 'cross_entropy', 'f1'}
  assert set(results['teacher']) == {
      'parameters', 'seconds', *TO_TEACHER}


def test_a_teacher_of_other_classes_teaches_how_sure_it_is(start, tmp_path):
  code, results, err = start(
      'classes', 'teacher.options.out=7', 'distillation.alpha=0.0',
      'losses.sorted.loss=universal_logit')
  assert code == 0, err
  assert 'kl' not in results['student']
  rows = map(json.loads,
             (tmp_path / 'run/metrics.jsonl').read_text().splitlines())
  assert any(row.get('loss/sorted', 0) > 0 for row in rows)


def test_a_teacher_learns_by_a_loss_of_ones_own(start):
  code, results, err = start(
      'numbers', 'distillation.alpha=None', 'student.options.out=1',
      'teacher.options.out=1', 'losses.own.loss=mse_labels')
  assert code == 0, err
  assert results['student']['mse'] > 0


@pytest.mark.parametrize('kind, flags, code, match', (
    ('numbers', ('task=classification', 'student.options.out=1'), 3,
     'must have no label unless num_classes is known'),
    ('classes', ('student.options.out=2',), 2,
     'a logit for each class of the data; got 2 logits, where there are 3'),
    ('classes', ('student.options.out=1', 'teacher.options.out=1'), 2,
     'a logit for each class of the data; got 1 logits'),
    ('several', ('task=classification',), 3,
     "set config.task='multilabel'"),
    ('several_ints', (), 2, "set config.task='multilabel'"),
    ('classes', ('task=regression',), 2,
     'labels must have the shape of the outputs'),
    ('classes', ('task=multilabel',), 3,
     'must have one number per class as its label'),
    ('classes', ('student.options.returns=tuple',), 2,
     'config.student: outputs must be logits [B, V], haikd.LinearLogits or '
     'haikd.Embedding; got a tuple of 2.'),
    ('classes', ('student.options.returns=dict',), 2,
     "got a dict of ['logits']."),
    ('classes', ('student.options.returns=none',), 2, 'got NoneType.'),
    ('classes', ('student.options.returns=flat',), 2, 'return [B, 1].'),
    ('names', (), 3, 'hold numbers in label; got label.dtype=<U3. Number the'),
    ('labels', (), 3, "got the key 'labels'. Name it 'label'."),
    ('weights', (), 3, "got the key 'sample_weight'. Name it 'weight'"),
    ('two_inputs', (), 2, 'Examples have several inputs, which come as a dict'),
    ('uint8', ('student.model=conv',), 2,
     "except for images of uint8 under the key 'image'"),
    ('ragged', (), 3, 'Set config.data.image_size'),
    ('no_validation', (), 3, 'set config.evaluation.split to a split that it '
     'has, or to train[90%:]'),
    ('classes', ('teacher.model=constant',
                 'distillation.use_feature_matching=True'), 2,
     'called by a function that was transformed before'),
))
def test_what_cannot_be_right_is_refused_before_training(
    start, tmp_path, kind, flags, code, match):
  refused, _, err = start(kind, *flags)
  assert match in err
  assert refused == code
  assert not list((tmp_path / 'run').glob('**/checkpoints'))


def test_a_path_of_haiku_with_a_tilde_is_the_module(start):
  code, _, err = start('classes', 'distillation.use_feature_matching=True',
                       'student.taps.features=~/hidden',
                       "teacher.taps.features=('hidden',)")
  assert code == 0, err


def test_predicted_numbers_have_no_temperature(start):
  code, results, err = start(
      'numbers', 'student.options.out=1', 'teacher.options.out=1',
      'distillation.temperature=4.0', 'losses.own.loss=mean_absolute_error')
  assert code == 0, err
  assert results['student']['mae'] > 0
  assert err.count('config.distillation.temperature is not used') == 1


@pytest.mark.mesh
def test_a_glob_of_the_model_that_matches_nothing_is_said(start):
  """On eight devices as on one, where no block is rematerialised."""
  code, _, err = start('classes', 'student.model=odd', 'student.remat=full')
  assert code == 2 and 'remat_modules must match a module' in err
  code, _, err = start('classes', 'student.model=odd')
  assert code == 0, err
  assert err.count("haikd: no module matches 'no_such_module'") == 1


def test_blocks_may_be_several_globs(start):
  code, _, err = start('classes', 'student.model=two_globs',
                       'student.remat=full')
  assert (code, err) == (0, '')


def test_labels_of_which_several_are_true_are_planned(start, tmp_path):
  """The plan compiles the step that training runs: one sigmoid a label."""
  from haikd import launch
  assert launch.main([
      'launch', f'--config={tmp_path / "brought.py"}', '--mode=plan',
      f'--workdir={tmp_path / "plan"}', '--topology=cpu:8',
      '--config.data.options.kind=several_of_one',
      '--config.student.options.out=1',
      '--config.teacher.options.out=1']) == 0


@pytest.mark.report
@pytest.mark.parametrize('kind, model', (('tags', 'tagger'),
                                         ('places', 'conv')))
def test_positions_without_a_mask_have_a_report(start, tmp_path, kind, model):
  code, _, err = start(kind, f'student.model={model}', f'teacher.model={model}')
  assert code == 0, err
  assert 'could not be made' not in err
  assert 'differ most' in (tmp_path / 'run/report.html').read_text()
