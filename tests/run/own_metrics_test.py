"""Metrics of a user's own, through the launcher, against scikit-learn."""

import json
import textwrap

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
import tokenizers

import haikd
from haikd import metrics as metrics_lib
from haikd.core import base
from haikd.core import entries
from haikd.core import registry
from haikd.metrics import own as own_lib

PLUGIN = """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import haikd
    from haikd import data
    from sklearn import metrics

    def make(split, size=37):
      rng = np.random.default_rng(len(split))
      x = rng.random((size, 6), np.float32)
      return dict(x=x, label=x.argmax(-1) % 3)

    @haikd.register_dataset()
    def mine(split):
      return data.Arrays(make(split), num_classes=3)

    @haikd.register_metric()
    def top(student, *, mask, labels, k=1):
      order = jnp.argsort(student, axis=-1, descending=True)[..., :k]
      hits = (order == labels[..., None]).any(-1)
      return haikd.masked_mean(hits.astype(jnp.float32), mask)

    @haikd.register_metric(whole_split=True)
    def auc(student, *, mask, labels):
      assert isinstance(student, np.ndarray) and mask.all()
      return metrics.roc_auc_score(
          labels, jax.nn.softmax(student), multi_class='ovr')

    @haikd.register_metric(less_is_better=True)
    def gap(student, teacher, *, mask):
      return haikd.masked_mean(jnp.abs(student - teacher).max(-1), mask)

    @haikd.register_metric(whole_split=True)
    def broken(student, *, mask):
      raise KeyError('no such key')

    @haikd.register_metric()
    def vector(student, *, mask):
      return haikd.LossSum(student.sum(0), mask.sum())

    @haikd.register_metric()
    def no_sum(student, *, mask):
      return student.mean()
"""


@pytest.fixture
def start(run, tmp_path):
  """Runs with a dict of own metrics in the config; returns code and stderr."""
  (tmp_path / 'my_metrics.py').write_text(textwrap.dedent(PLUGIN))

  def call(own, *flags):
    source = (tmp_path / 'tiny.py').read_text()
    source = source.replace('return', (
        "config.plugins = ('my_metrics',)\n"
        "  config.data.name, config.data.options = 'mine', {}\n"
        '  config.baseline = True\n'
        '  config.evaluation.batch_size = 8\n'
        f'  config.evaluation.metrics = {own!r}\n  return'))
    (tmp_path / 'own.py').write_text(source)
    code, out, err = run(*(f'--config.{flag}' for flag in flags),
                         config='own.py')
    return code, out, err

  with registry.metrics.temporary():
    yield call


@pytest.mark.mesh
def test_values_are_those_of_scikit_learn(start, tmp_path):
  """On 8 devices, with a last batch that is padded."""
  code, out, err = start(dict(top=dict(k=2), auc={}, gap={}),
                         'evaluation.keep_best=gap')
  assert code == 0, err
  results = json.loads((tmp_path / 'run/result.json').read_text())
  import my_metrics
  columns = my_metrics.make('test')
  # The student that learns from no teacher has no gap; the others have.
  assert 'student alone has no gap' in err
  for name, which in (('student', 'student'), ('teacher', 'teacher'),
                      ('student_alone', 'student_alone')):
    network = haikd.load(tmp_path / 'run', which=which)
    logits = np.asarray(network.apply(columns['x']))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert results[name]['top'] == pytest.approx(
        sklearn_metrics.top_k_accuracy_score(columns['label'], logits, k=2),
        abs=1e-6)
    assert results[name]['auc'] == pytest.approx(
        sklearn_metrics.roc_auc_score(columns['label'], probabilities,
                                      multi_class='ovr'), abs=1e-6)
  assert metrics_lib.is_less_better('gap')
  assert not metrics_lib.is_less_better('auc')
  assert results['teacher']['gap'] == 0
  assert results['student']['gap'] > 0
  assert any(all(name in line for name in ('top', 'auc', 'gap'))
             for line in out.splitlines())


@pytest.mark.parametrize('own, code, match', (
    (dict(topp={}), 2, "metrics.topp must name a registered metric; got"),
    (dict(top=dict(n=2)), 2, "metrics.top.n must be an option of top; got 'n'"),
    (dict(top=3), 2, 'metrics must give a dict of options'),
    (dict(no_sum={}), 2, 'metrics.no_sum must return a haikd.LossSum; got'),
    (dict(vector={}), 2, 'metrics.vector must return two scalars; got total'),
    (dict(broken={}), 2, 'metrics.broken must be computable; got KeyError'),
))
def test_what_cannot_work_is_refused(start, tmp_path, own, code, match):
  exit_code, _, err = start(own)
  assert exit_code == code
  assert match in err
  assert not (tmp_path / 'run/result.json').exists()


def test_a_lazy_teacher_is_kept_as_logits():
  rng = np.random.default_rng(0)
  output, hidden, kernel = (
      rng.normal(size=size).astype(np.float32)
      for size in ((2, 3, 5), (2, 3, 4), (4, 5)))
  metric = own_lib.Own('distance', entries.MetricEntry(
      lambda student, teacher, *, mask: np.abs(student - teacher).max(),
      True, True, __name__), {})
  mask = np.ones((2, 3), bool)
  values = metrics_lib.finish(*metrics_lib.measure(
      output, base.LinearLogits(hidden, kernel), mask=mask, own=(metric,)),
                              own=(metric,))
  assert values['distance'] == pytest.approx(
      np.abs(output - hidden @ kernel).max(), rel=1e-5)


@pytest.mark.parametrize('takes', ('weight', ''))
def test_a_metric_of_the_whole_split_weighs_if_it_takes_weights(
    run, tmp_path, takes):
  """Against the weighted accuracy of haikd; else what it does not is said."""
  (tmp_path / 'my_weighted.py').write_text(textwrap.dedent(f"""
      import numpy as np
      import haikd
      from haikd import data

      @haikd.register_dataset()
      def weighed(split):
        x = np.random.default_rng(0).random((20, 4), np.float32)
        return data.Arrays(dict(x=x, label=np.arange(20) % 3,
                                weight=np.arange(20) / 10), num_classes=3)

      @haikd.register_metric(whole_split=True)
      def own(student, *, mask, labels, {takes}{'=None' if takes else ''}):
        hits = student.argmax(-1) == labels
        return np.average(hits, weights={takes or None})
      """))
  source = (tmp_path / 'tiny.py').read_text()
  (tmp_path / 'own.py').write_text(source.replace('return', (
      "config.plugins = ('my_weighted',)\n"
      "  config.data.name, config.data.options = 'weighed', {}\n"
      '  config.evaluation.metrics = dict(own={})\n  return')))
  with registry.metrics.temporary():
    code, _, err = run(config='own.py')
  assert code == 0, err
  said = 'metrics.own does not weigh examples, though the data has weights'
  assert err.count(said) == (not takes)
  row = json.loads((tmp_path / 'run/result.json').read_text())['student']
  assert (row['own'] == pytest.approx(row['accuracy'])) == bool(takes)


@pytest.mark.parametrize('name, function, match', (
    ('accuracy', lambda student, *, mask: None, 'name of a metric must be new'),
    ('mine', lambda logits, *, mask: None, 'a metric must take student first'),
    ('mine', lambda student: None, 'and the keyword mask'),
))
def test_registrations_that_cannot_work_are_refused(name, function, match):
  with registry.metrics.temporary(), pytest.raises(ValueError, match=match):
    haikd.register_metric(name)(function)


@pytest.mark.slow
def test_a_masked_mean_of_a_language_model_comes_in_chunks(
    run, tmp_path, write_language_model):
  """Own accuracy equals that of haikd; padding and the last batch included."""
  (tmp_path / 'my_metrics.py').write_text(textwrap.dedent("""
      import jax.numpy as jnp
      import haikd

      @haikd.register_metric()
      def own_accuracy(student, *, mask, labels):
        assert student.ndim == 2  # Positions of a chunk.
        hits = student.argmax(-1) == labels
        return haikd.masked_mean(hits.astype(jnp.float32),
                                 mask & (labels != -100))

      @haikd.register_metric(whole_split=True)
      def all_logits(student, *, mask):
        return 0.0
      """))
  for split in ('train', 'validation', 'test'):
    (tmp_path / f'{split}.jsonl').write_text(
        '{"text": "a b c d e f g h i j k"}\n' * 20)
  letters = ['<unk>', '</s>', *'abcdefghijk']
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(letters)}, unk_token='<unk>'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(letters[:2])
  (tmp_path / 'words').mkdir()
  made.save(str(tmp_path / 'words/tokenizer.json'))
  (tmp_path / 'words/tokenizer_config.json').write_text(
      '{"eos_token": "</s>", "unk_token": "<unk>"}')
  write_language_model(
      'lm.py', name='text', source_dir=str(tmp_path),
      data_dir=str(tmp_path / 'data'),
      options=dict(tokenizer=str(tmp_path / 'words'), length=8))
  source = (tmp_path / 'lm.py').read_text()
  with registry.metrics.temporary():
    for own, code in (('own_accuracy', 0), ('all_logits', 2)):
      (tmp_path / 'own.py').write_text(source.replace(
          'return config', "config.plugins = ('my_metrics',)\n"
          f'  config.evaluation.metrics.{own} = {{}}\n  return config'))
      exit_code, _, err = run(config='own.py', workdir=own)
      assert exit_code == code, err
  assert 'metrics.all_logits must not be of the whole split' in err
  results = json.loads((tmp_path / 'own_accuracy/result.json').read_text())
  for row in results.values():
    assert row['own_accuracy'] == pytest.approx(row['accuracy'], abs=1e-6)
