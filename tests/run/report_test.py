"""The page that a run ends with."""

import html.parser
import json
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

import haikd
from haikd.data import synthetic
from haikd.engine import sample
from haikd.report import curves as curves_lib
from haikd.report import findings
from haikd.report import measures
from haikd.report import overview
from haikd.report import probe
from haikd.run import intervals
from haikd.run import report

pytestmark = pytest.mark.report

CLASSES = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.baseline = 4, 16, True
      config.evaluation.batch_size = 40
      config.data.name = 'synthetic'
      config.data.options = dict(size=100, shape=(4, 4, 1), num_classes=3)
      config.teacher.options = dict(hidden=(8, 8))
      config.teacher.train.steps = 4
      config.student.options = dict(hidden=(4,))
      return config
"""
# The data of `write_language_model`.
TOKENS = dict(
    name='synthetic',
    options=dict(kind='tokens', size=20, length=6, vocabulary=11))


@pytest.fixture
def observed(monkeypatch):
  """What is observed of each network while a job runs, by its name."""
  seen = {}
  observe = report.Report.observe

  def spy(self, network, *args):
    observe(self, network, *args)
    seen.update(self._observations)

  monkeypatch.setattr(report.Report, 'observe', spy)
  return seen


class Outline(html.parser.HTMLParser):
  """Reads headings, tables, and what a page would fetch."""

  def __init__(self, text):
    super().__init__()
    self.headings, self.rows, self.fetched = [], [], []
    self._into = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    if tag == 'h2':
      self.headings.append('')
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th') and self.rows:
      self.rows[-1].append('')
    self._into = tag
    self.fetched += [value for name, value in attrs
                     if name in ('src', 'href', 'xlink:href')
                     and not value.startswith(('data:', '#', 'seed-'))]

  def handle_data(self, data):
    if self._into == 'h2':
      self.headings[-1] += data
    if self._into in ('td', 'th', 'span', 'code'):
      self.rows[-1][-1] += data

  def handle_endtag(self, tag):
    self._into = None


def start(run, tmp_path, config, *flags, says='', **options):
  (tmp_path / 'job.py').write_text(textwrap.dedent(config))
  code, _, err = run(*flags, config='job.py', **options)
  assert (code, err) == (0, says)  # A report that failed would be said there.


@pytest.mark.mesh
def test_observed_are_the_networks_that_were_trained(run, tmp_path, observed):
  """Eight devices find what one finds with the networks on disk."""
  odd = "config.losses['<b>x'] = dict(loss='logit_mse', weight=0.5)"
  start(run, tmp_path, CLASSES.replace('return', f'{odd}\n      return'))
  run_dir = tmp_path / 'run'
  result = json.loads((run_dir / 'result.json').read_text())
  split = synthetic.synthetic('test', size=100, shape=(4, 4, 1), num_classes=3)
  examples = [split[i] for i in range(len(split))]
  images, labels = (np.stack([x[key] for x in examples])
                    for key in ('image', 'label'))
  logits = {
      name: np.asarray(haikd.load(run_dir, name).apply(images))
      for name in ('teacher', 'student_alone', 'student')}
  assert set(observed) == {'student_alone', 'student'}
  for name, observation in observed.items():
    numbers = observation.numbers
    np.testing.assert_array_equal(numbers, np.arange(len(labels)))
    for role, network in (('student', name), ('teacher', 'teacher')):
      predicted = logits[network].argmax(-1)
      np.testing.assert_array_equal(
          observation.columns[role]['predicted'], predicted)
      np.testing.assert_array_equal(
          observation.sums[role]['confusion'],
          sklearn_metrics.confusion_matrix(labels, predicted, labels=range(3)))
      np.testing.assert_allclose(
          np.trace(observation.sums[role]['confusion']) / len(labels),
          result[network]['accuracy'], rtol=1e-6)
    np.testing.assert_allclose(
        observation.columns['student']['divergence'].mean(),
        result[name]['kl'], rtol=1e-4)
  text = (run_dir / 'report.html').read_text()
  assert '&lt;b&gt;x' in text and '<b>' not in text  # What a user names.
  page = Outline(text)
  assert page.headings == [
      'Results', 'Curves', 'Classes', 'Reliability', 'Layers',
      'Where student and teacher differ most', 'Time', 'How it was made']
  assert not page.fetched
  shown = [row for row in page.rows if row[0] == 'student distilled'][0]
  assert f'{100 * result["student"]["accuracy"]:.2f}%' in shown


def test_a_language_model_shows_tokens(
    run, tmp_path, observed, write_language_model, monkeypatch):
  config = write_language_model('tokens.py', **TOKENS)
  sizes = []
  measure = measures.measure
  monkeypatch.setattr(measures, 'measure', lambda *args, **options: (
      sizes.append(options['sizes'].chunk_bytes), measure(*args, **options))[1])
  # 96 positions are 16 texts of 6.
  monkeypatch.setattr(probe, 'MAX_POSITIONS', 96)
  start(run, tmp_path, config.read_text(), '--config.chunk_mib=0.125')
  assert set(sizes) == {2**17}
  assert ('16 of the 20 examples of test, spread evenly over it (no more than '
          '96 positions).') in (tmp_path / 'run/report.html').read_text()
  page = Outline((tmp_path / 'run/report.html').read_text())
  assert page.headings == [
      'Results', 'Curves', 'Reliability', 'Layers', 'Attention',
      'Where student and teacher differ most', 'Time', 'How it was made']
  columns = observed['student'].columns['student']
  largest = (columns['kl'] * columns['counts']).max()
  first = next(row for row in page.rows if row[0] != 'text' and len(row) == 5
               and row[-1] == f'{largest:.2f}')
  assert first


def test_weights_count_and_an_example_of_weight_0_is_not_there(
    run, tmp_path, observed):
  (tmp_path / 'my_plugin.py').write_text(textwrap.dedent("""
      import haikd
      import numpy as np
      from haikd import data

      @haikd.register_dataset()
      def weighted(split):
        rng = np.random.default_rng(len(split))
        image = rng.normal(size=(40, 4, 4, 1)).astype(np.float32)
        weight = np.float32(np.arange(40) % 4 / 2)
        image[weight == 0] = 1e6
        label = np.arange(40) % 3
        return data.Arrays(dict(image=image, label=label, weight=weight),
                           num_classes=3)
      """))
  config = CLASSES.replace("'synthetic'", "'weighted'")
  config = re.sub(r' *config.data.options = .*\n', '', config)
  start(run, tmp_path, config.replace(
      'return', "config.plugins = ('my_plugin',)\n      return"),
        '--config.baseline=False')
  import my_plugin
  columns = my_plugin.weighted('test').columns
  kept = np.flatnonzero(columns['weight'])
  observation = observed['student']
  np.testing.assert_array_equal(observation.numbers, kept)
  for role in ('student', 'teacher'):
    logits = haikd.load(tmp_path / 'run', role).apply(columns['image'][kept])
    np.testing.assert_allclose(
        observation.sums[role]['confusion'], sklearn_metrics.confusion_matrix(
            columns['label'][kept], np.asarray(logits).argmax(-1),
            labels=range(3), sample_weight=columns['weight'][kept]))
    assert len(observation.grams[role][0]) == len(kept)
  assert ('on all 40 examples of test, less 10 without a position or weight '
          'that counts.') in (tmp_path / 'run/report.html').read_text()


def test_without_examples_there_are_results_and_curves(run, tmp_path):
  start(run, tmp_path, CLASSES, '--config.report.examples=0')
  page = Outline((tmp_path / 'run/report.html').read_text())
  assert page.headings == ['Results', 'Curves', 'Time', 'How it was made']
  # The field is free: the finished run only writes its page anew.
  start(run, tmp_path, CLASSES, '--config.report.examples=7')
  text = (tmp_path / 'run/report.html').read_text()
  assert ('What follows the curves is measured on 7 of the 100 examples of '
          'test, spread evenly over it (config.report.examples).') in text
  start(run, tmp_path, CLASSES, '--config.report.write=False', workdir='other')
  assert not (tmp_path / 'other/report.html').exists()


def fail(*args, **options):
  raise ValueError('no room')


def test_a_report_that_fails_keeps_the_run(run, tmp_path, monkeypatch):
  (tmp_path / 'job.py').write_text(textwrap.dedent(CLASSES))
  with monkeypatch.context() as patch:
    patch.setattr(probe.Probe, 'observe', fail)
    code, _, err = run(config='job.py')
  sentence = (
      'haikd: {} could not be made: ValueError: no room. The results are kept; '
      'config.report.write=False leaves it out.\n')
  assert code == 0
  assert err == sentence.format('the examples of report.html')
  assert (tmp_path / 'run/result.json').exists()
  page = Outline((tmp_path / 'run/report.html').read_text())
  assert page.headings == ['Results', 'Curves', 'Time', 'How it was made']
  # A section that fails takes no other with it, and the file has its own name.
  monkeypatch.setitem(findings.SECTIONS, 'Reliability', fail)
  monkeypatch.setattr(overview, 'curves', fail)
  code, _, err = run('--mode=eval', config='job.py')
  assert code == 0
  assert err == ''.join(
      sentence.format(f"the section '{title}' of eval-test.html")
      for title in ('Curves', 'Reliability'))
  page = Outline((tmp_path / 'run/eval-test.html').read_text())
  assert page.headings == [
      'Results', 'Classes', 'Layers', 'Where student and teacher differ most',
      'How it was made']


def test_without_matplotlib_the_page_has_tables_alone(
    run, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  start(run, tmp_path, CLASSES, says=(
      'haikd: For the pictures of report.html, install matplotlib: pip install '
      "'haikd[report]'.\n"))
  text = (tmp_path / 'run/report.html').read_text()
  assert '<svg' not in text
  assert 'What follows the results is measured on all 100 examples of' in text
  page = Outline(text)
  assert page.headings == ['Results', 'Classes', 'Reliability', 'Layers',
                           'Where student and teacher differ most', 'Time',
                           'How it was made']
  assert ['network', 'ECE'] in page.rows


def test_several_seeds_have_a_page_of_their_means(run, tmp_path):
  start(run, tmp_path, CLASSES, '--seeds=2', '--config.report.examples=5')
  page = Outline((tmp_path / 'run/report.html').read_text())
  assert page.headings == ['Results', 'Seeds', 'Curves', 'How it was made']
  assert page.rows[0][0] == '2 seeds, 95 %'
  text = (tmp_path / 'run/report.html').read_text()
  assert '<a href="seed-1/report.html">seed-1</a>' in text
  assert (tmp_path / 'run/seed-1/report.html').exists()


def test_curves_are_means_with_intervals_over_seeds(monkeypatch):
  drawn = {}
  monkeypatch.setattr(
      curves_lib, 'curves', lambda lines, **options: drawn.update(
          {(options['title'], line.label): line for line in lines},
          stages=options['stages']) or '<svg>')
  rows = lambda loss, accuracy: [
      {'step': 1, 'split': 'train', 'loss': loss, 'loss/kl': loss,
       'weight/kl': loss / 2},
      {'step': 2, 'split': 'eval/validation', 'accuracy': accuracy},
      {'step': 3, 'split': 'train', 'loss': 'NaN', 'loss/kl': 0.5}]
  overview.curves(
      dict(teacher=[[], []], student_alone=[[], []],
           student=[rows(3.0, 0.5), rows(5.0, 0.7)]),
      dict(student='distilled'), lambda x: intervals.of_mean(x).half_width,
      dict(late=2))
  assert drawn.pop('stages') == dict(late=2)
  loss = drawn['Training loss of the student', 'kl']
  assert loss[2:4] == ([1, 3], [4.0, 0.5])
  assert drawn['Weights of the losses', 'kl'][2:4] == ([1], [2.0])
  accuracy = drawn['Accuracy, evaluated', 'distilled']
  np.testing.assert_allclose(accuracy.values, [0.6])
  # SciPy's own interval of a mean.
  low, high = stats.t.interval(0.95, 1, 0.6, stats.sem([0.5, 0.7]))
  np.testing.assert_allclose(accuracy.half_width, [(high - low) / 2])
  assert ('Training loss of the student', 'weighted sum') not in drawn


def test_curves_have_a_line_where_a_stage_begins():
  curve = curves_lib.Curve('loss', 'black', [1, 2, 3], [3.0, 2.0, 1.0])
  plain = curves_lib.curves([curve], title='Loss')
  staged = curves_lib.curves([curve], title='Loss', stages=dict(late=2))
  assert 'late' in staged and 'late' not in plain


@pytest.mark.parametrize('size, limit', ((10, 20), (100, 7), (5, 5)))
def test_a_sample_is_spread_over_the_split(size, limit):
  indices = sample.choose(size, limit)
  assert len(set(indices)) == len(indices) == min(size, limit)
  assert np.diff(np.sort(indices), prepend=-1, append=size).max() <= (
      size // len(indices) + 1)


def chromium():
  return next(filter(None, map(shutil.which, (
      'chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.mark.slow
@pytest.mark.skipif(not chromium(), reason='no chromium')
@pytest.mark.parametrize('of_texts', (False, True))
def test_a_browser_without_a_network_shows_the_page(
    run, tmp_path, write_language_model, of_texts):
  config = CLASSES
  if of_texts:
    config = write_language_model('tokens.py', **TOKENS).read_text()
  start(run, tmp_path, config)
  page = tmp_path / 'run' / 'report.html'
  flags = ['--headless', '--no-sandbox', '--disable-gpu',
           '--enable-logging=stderr',
           '--v=0', '--host-resolver-rules=MAP * ~NOTFOUND',
           '--proxy-server=http://127.0.0.1:9', '--window-size=1100,3000',
           f'--user-data-dir={tmp_path / "profile"}',
           '--virtual-time-budget=2000']
  shot = tmp_path / 'shot.png'
  done = subprocess.run(
      [chromium(), *flags, f'--screenshot={shot}', page.as_uri()],
      capture_output=True, text=True, timeout=120, check=True)
  assert 'CONSOLE' not in done.stderr, done.stderr
  from PIL import Image
  pixels = np.asarray(Image.open(shot).convert('RGB')).astype(int)
  # The student's blue, of its curves: figures are drawn.
  assert (np.abs(pixels - [57, 135, 229]).max(-1) < 12).sum() > 200
  dom = subprocess.run(
      [chromium(), *flags, '--dump-dom', page.as_uri()],
      capture_output=True, text=True, timeout=120, check=True).stdout
  assert Outline(dom).headings == Outline(page.read_text()).headings
  assert len(re.findall('<svg', dom)) == len(
      re.findall('<svg', page.read_text())) > 3


@pytest.mark.slow
@pytest.mark.skipif(not chromium(), reason='no chromium')
def test_console_errors_would_be_seen(tmp_path):
  """The log that the test above reads has them."""
  page = tmp_path / 'bad.html'
  page.write_text('<script>throw Error("boom")</script>')
  done = subprocess.run(
      [chromium(), '--headless', '--no-sandbox', '--disable-gpu',
       '--enable-logging=stderr', '--v=0',
       f'--screenshot={tmp_path / "x.png"}',
       page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
  assert 'CONSOLE' in done.stderr
