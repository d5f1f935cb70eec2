"""Jobs on queries and candidates, from scores in the data or from a teacher."""

import json
import pathlib
import re
import shutil
import textwrap

import numpy as np
import pytest
from scipy import stats
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

import haikd
from haikd.data import source

GOLDEN = pathlib.Path(__file__).parents[1] / 'interop' / 'golden'
WORDS = 'abcdefgh'

CONFIG = """
    import pathlib
    from haikd import config as config_lib

    HERE = pathlib.Path(__file__).parent

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.log_every = 2, 8, 1
      config.evaluation.batch_size, config.evaluation.split = 8, 'test'
      config.data.name = 'triples'
      config.data.source_dir = str(HERE)
      config.data.data_dir = str(HERE / 'prepared')
      config.data.options = dict(
          length=6, num_negatives=2, tokenizer=str(HERE / 'student'))
      config.distillation.alpha = None
      config.student.model = 'bert'
      config.student.options = dict(
          width=8, depth=1, heads=2, hidden=8, positions=8)
      for loss in {losses!r}:
        config.losses[loss] = dict(loss=loss)
      return config
"""


def prepare(folder, *losses):
  (folder / 'job.py').write_text(
      textwrap.dedent(CONFIG).replace('{losses!r}', repr(losses)))
  special = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')
  made = tokenizers.Tokenizer(models.WordLevel(
      {word: i for i, word in enumerate((*special, *WORDS))},
      unk_token='[UNK]'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.add_special_tokens(list(special))
  made.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
  shutil.copytree(GOLDEN / 'bert', folder / 'student')
  made.save(str(folder / 'student' / 'tokenizer.json'))
  rng = np.random.RandomState(0)
  draw = lambda: ' '.join(rng.choice([*WORDS], rng.randint(1, 5)))
  for split, count in (('train', 16), ('test', 11)):
    records = []
    for _ in range(count):
      negatives = [draw() for _ in range(rng.randint(0, 3))]
      records.append(dict(
          query=draw(), positive=draw(), negatives=negatives,
          scores=rng.randint(-2, 3, len(negatives) + 1).tolist()))
    (folder / f'{split}.jsonl').write_text(
        ''.join(f'{json.dumps(record)}\n' for record in records))


def results_of(folder):
  return json.loads((folder / 'run/result.json').read_text())


def rows_of(folder):
  lines = (folder / 'run/metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def expected_metrics(scores, labels, real):
  """Ranks, pairs and margins, one query and one candidate at a time."""
  ranks, order, margins = [], [], []
  for s, t, keep in zip(scores, labels, real):
    places = np.flatnonzero(keep)
    if len(places) > 1:
      ranks.append(1 / (1 + sum(s[j] > s[0] for j in places[1:])))
      margins += [(s[0] - s[j], t[0] - t[j]) for j in places[1:]]
    order += [s[i] > s[j] for i in places for j in places if t[i] > t[j]]
  return dict(mrr=np.mean(ranks), pair_order=np.mean(order),
              spearman=stats.spearmanr(*zip(*margins)).statistic,
              pearson=stats.pearsonr(*zip(*margins)).statistic)


@pytest.mark.report
def test_scores_in_the_data_take_the_place_of_a_teacher(run, tmp_path):
  losses = 'margin_mse', 'score_kl', 'info_nce'
  prepare(tmp_path, *losses)
  code, out, err = run(config='job.py')
  assert code == 0, err
  assert err.count('config.teacher has no weights, and no term compares with '
                   'it: the student learns from the data alone.') == 1
  assert 'student distilled' in out and 'MRR' in out and 'teacher' not in out
  first = rows_of(tmp_path)[0]
  assert all(np.isfinite(first[f'loss/{name}']) for name in losses)
  # The metrics are those of the vectors that the saved student returns.
  data = source.open_source(
      'triples', 'test', options=dict(
          length=6, num_negatives=2, tokenizer=str(tmp_path / 'student')),
      source_dir=str(tmp_path), data_dir=str(tmp_path / 'prepared'))
  rows = [data[i] for i in range(len(data))]
  tokens, mask, labels = (np.stack([row[key] for row in rows])
                          for key in ('tokens', 'mask', 'label'))
  loaded = haikd.load(tmp_path / 'run')
  vectors = np.float64(loaded.apply(tokens, mask))
  scores = np.einsum('bd,bcd->bc', vectors[:, 0], vectors[:, 1:])
  results = results_of(tmp_path)
  assert set(results) == {'student'}
  for name, value in expected_metrics(
      scores, labels, mask.any(-1)[:, 1:]).items():
    assert results['student'][name] == pytest.approx(value, rel=1e-5), name
  assert set(loaded.features(tokens, mask)) == {
      'features', 'attention', 'embedding'}
  page = (tmp_path / 'run/report.html').read_text()
  assert 'without a teacher network' in page
  assert re.findall('<h2>(.*?)</h2>', page) == [
      'Results', 'Curves', 'Time', 'How it was made']
  # What is started again, evaluated or exported needs no teacher either.
  assert run('--mode=eval', config='job.py')[0] == 0
  evaluated = json.loads((tmp_path / 'run/eval-test.json').read_text())
  assert evaluated['student']['mrr'] == results['student']['mrr']
  assert run('--mode=export', config='job.py')[0] == 0
  assert 'trained on the data alone with haikd' in (
      tmp_path / 'run/export/README.md').read_text()


def test_late_interaction_learns_from_a_live_teacher(run, tmp_path):
  prepare(tmp_path, 'maxsim_kl')
  args = ['--config.data.options.scores=()',
          '--config.student.options.pool=none',
          f'--config.teacher.init=hf:{tmp_path}/student',
          '--config.teacher.options={"pool": "none"}']
  code, _, err = run(*args, config='job.py')
  assert code == 0, err
  assert np.isfinite(rows_of(tmp_path)[0]['loss/maxsim_kl'])
  results = results_of(tmp_path)
  assert results['teacher']['pair_order'] == 1
  assert 0 < results['student']['pair_order'] < 1
  assert 0 < results['student']['mrr'] <= 1
  code, _, err = run('--mode=export', *args, config='job.py')
  assert code == 2 and re.search(
      "options.pool must be .*; got 'none', which no network of this kind", err)


@pytest.mark.parametrize('losses, args, match', (
    (('margin_mse',), ['--config.data.options.scores=()'],
     'config.teacher must have weights, since config.losses.margin_mse '
     'compares with it; got init=None and train.steps=0.'),
    (('margin_mse', 'embedding_cosine'), [],
     'since config.losses.embedding_cosine compares with it'),
    (('margin_mse',), ['--config.distillation.alpha=0.5'],
     'since config.distillation.alpha compares with it'),
    (('margin_mse',), ['--config.baseline=True'],
     'config.baseline must be False if the data has no labels and'),
    (('maxsim_kl',), [],
     'config.student.taps.token_embedding must match a module that is called'),
    (('score_kl',), ['--config.student.options.pool=none'],
     'config.student.taps.embedding must match a module that is called'),
))
def test_what_cannot_be_right_is_refused(run, tmp_path, losses, args, match):
  prepare(tmp_path, *losses)
  code, _, err = run(*args, config='job.py')
  assert code == 2 and match in err, err
