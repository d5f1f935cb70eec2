"""Masked language models, and encoders with a tokenizer each, as jobs."""

import json
import pathlib
import re
import shutil
import textwrap

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from haikd.config import file as config_file
from haikd.core import notes
from haikd.engine import mesh as mesh_lib
from haikd.interop import tokenizer_files
from haikd.run import export as export_lib
from haikd.run import resolve
from haikd.run import trainees
from haikd.storage import checkpoint
from haikd.storage import checkpointer as checkpointer_lib
from haikd.storage import fingerprint

GOLDEN = pathlib.Path(__file__).parents[1] / 'interop' / 'golden'
LETTERS = 'abcdefghijklmnop'
WORDS = 'abba cad fig a hog no peg dip bag of mob pip'.split()

# The mean cosine of the split `test`, from transformers 5.24 with torch 2.13:
# means of the last hidden states of BertModel and DistilBertModel, without the
# layer 0 of each, for the ids that the package tokenizers gives for each.
COSINE = -0.15331730

CONFIG = """
    import pathlib
    from haikd import config as config_lib

    HERE = pathlib.Path(__file__).parent

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.log_every = 2, 16, 1
      config.checkpoint_every = config.evaluation.every = 2
      config.evaluation.batch_size, config.evaluation.split = 16, 'test'
      config.optimizer.schedule = 'constant'
      config.data.source_dir = str(HERE)
      config.data.data_dir = str(HERE / 'prepared')
      config.data.options = dict(length=12)
      config.teacher.init = f'hf:{HERE}/teacher'
      config.student.init = f'hf:{HERE}/student'
      config.teacher.init_layers = config.student.init_layers = (1,)
"""
MASKED = """
      config.data.name = 'masked_text'
      config.student.init_layers = (0,)
      return config
"""
VECTORS = """
      config.data.name = 'sentences'
      config.distillation.alpha = 0.0
      config.losses.vectors = dict(loss='embedding_cosine')
      return config
"""
CLASSES = """
      config.data.name = 'labelled_sentences'
      config.data.options.classes = 3
      return config
"""


def word_piece(special=('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')):
  """Returns a tokenizer that cuts words into letters."""
  pieces = [*special, *LETTERS, *(f'##{letter}' for letter in LETTERS)]
  made = tokenizers.Tokenizer(models.WordPiece(
      {piece: i for i, piece in enumerate(pieces)}, unk_token='[UNK]'))
  made.normalizer = normalizers.BertNormalizer()
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.add_special_tokens(list(special))
  return surrounded(made, '[CLS]', '[SEP]')


def words_and_letters():
  """Returns another one: some words are tokens, others fall into letters."""
  special = ['<pad>', '<unk>', '<mask>', '</s>', '<s>']
  pieces = [*special, *reversed(LETTERS), 'ab', 'ba', 'abba', 'no', 'ip', 'pip']
  made = tokenizers.Tokenizer(models.BPE(
      {piece: i for i, piece in enumerate(pieces)},
      merges=[('a', 'b'), ('b', 'a'), ('ab', 'ba'), ('n', 'o'), ('i', 'p'),
              ('p', 'ip')], unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(special)
  return surrounded(made, '<s>', '</s>')


def surrounded(made, first, last):
  made.post_processor = processors.TemplateProcessing(
      single=f'{first} $A {last}', special_tokens=[
          (name, made.token_to_id(name)) for name in (first, last)])
  return made


def prepare(folder, config, **networks):
  """Writes a config, texts, and networks `role=(golden case, tokenizer)`."""
  (folder / 'job.py').write_text(textwrap.dedent(CONFIG + config))
  for role, (case, tokenizer) in networks.items():
    shutil.copytree(GOLDEN / case, folder / role)
    tokenizer.save(str(folder / role / 'tokenizer.json'))
  rng = np.random.RandomState(0)
  for split, count in (('train', 20), ('test', 16)):
    texts = [' '.join(rng.choice(WORDS, rng.randint(1, 4)))
             for _ in range(count)]
    (folder / f'{split}.jsonl').write_text(''.join(
        json.dumps(dict(text=text, label=len(text) % 3)) + '\n'
        for text in texts))


@pytest.fixture
def masked(tmp_path):
  case = 'bert_masked_lm', word_piece()
  prepare(tmp_path, MASKED, teacher=case, student=case)


@pytest.fixture
def apart(tmp_path):
  prepare(tmp_path, VECTORS, teacher=('bert', word_piece()),
          student=('distilbert', words_and_letters()))


def texts_of(path):
  return [json.loads(line)['text'] for line in path.read_text().splitlines()]


def results_of(folder, name='result.json'):
  return json.loads((folder / 'run' / name).read_text())


def identity(folder):
  return fingerprint.tree_hash(checkpoint.load_network(folder))


class _Cut(Exception):
  """Ends a run after a checkpoint, like a kill."""


def cut_after(monkeypatch, step):
  original = checkpointer_lib.Checkpointer.save

  def save(self, at, *args):
    original(self, at, *args)
    if at == step:
      self.wait()
      raise _Cut

  monkeypatch.setattr(checkpointer_lib.Checkpointer, 'save', save)


def test_a_masked_model_on_the_next_token_is_refused(run, masked, tmp_path):
  code, _, err = run('--config.data.name=text', config='job.py')
  assert code == 2
  assert err == (
      'haikd: config.data.name must be a data set for masked_lm, which is what '
      "config.teacher predicts; got 'text', whose targets are for causal_lm. "
      'Data sets for masked_lm: masked_text, sentences.\n')
  assert not (tmp_path / 'prepared').exists()  # Nothing was read.


@pytest.mark.mesh
@pytest.mark.report
def test_a_masked_model_is_trained_and_scored_on_hidden_words(
    run, masked, tmp_path):
  """Eight devices find what NumPy finds from one device's logits."""
  assert run(config='job.py')[::2] == (0, '')
  results = results_of(tmp_path)
  page = (tmp_path / 'run/report.html').read_text()
  assert '<h2>Attention</h2>' in page and '<th scope="col">hidden token' in page
  assert results['student']['kl'] < results['student_start']['kl']
  config = resolve.from_pretrained(config_file.load(str(tmp_path / 'job.py')))
  student = trainees.build(
      config, mesh_lib.build_mesh(config.mesh, jax.devices()[:1]))

  def run_on_one_device(role):
    """Returns logits at the chosen positions of two batches, and labels."""
    network = jax.jit(getattr(student.program.objective, role).infer)
    for batch in (next(student.data.train()), *student.data.evaluation('test')):
      output = network(student.start(role).network, batch).logits
      logits = np.float64(output.hidden) @ np.asarray(output.kernel)
      logits += np.asarray(output.bias)
      labels = batch.labels[batch.target_mask]
      assert len(labels) > 3 and (labels > 4).all()  # No special token.
      yield logits[batch.target_mask], labels

  def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

  def cross_entropy(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), labels].mean()

  (teacher, _), evaluated = run_on_one_device('teacher')
  (logits, labels), _ = run_on_one_device('student')
  # The loss of the first step: 0.9 T^2 KL + 0.1 CE with T = 2.
  soft, softer = log_softmax(teacher / 2), log_softmax(logits / 2)
  divergence = (np.exp(soft) * (soft - softer)).sum(-1).mean()
  expected = 3.6 * divergence + 0.1 * cross_entropy(logits, labels)
  rows = (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  assert json.loads(rows[0])['loss'] == pytest.approx(expected, rel=1e-5)
  logits, labels = evaluated
  assert results['teacher']['accuracy'] == pytest.approx(
      (logits.argmax(-1) == labels).mean())
  assert results['teacher']['perplexity'] == pytest.approx(
      np.exp(cross_entropy(logits, labels)), rel=1e-5)
  assert run('--mode=export', config='job.py')[0] == 0
  exported = json.loads((tmp_path / 'run/export/config.json').read_text())
  assert exported['architectures'] == ['BertForMaskedLM']


@pytest.mark.slow
@pytest.mark.report
def test_encoders_have_a_tokenizer_each(run, apart, tmp_path):
  """Both vocabularies are pruned; the vectors are those of the full ones."""
  args = ['--config.data.options={"length": 12, "prune": True}']
  code, _, err = run(*args, config='job.py')
  assert code == 0 and err.count(
      f'haikd: texts are tokenised twice: by {tmp_path}/teacher for the '
      f'teacher, and by {tmp_path}/student for the student.\n') == 1
  results = results_of(tmp_path)
  assert results['teacher']['cosine'] == pytest.approx(1)
  start = results['student_start']['cosine']
  assert start == pytest.approx(COSINE, abs=1e-6)
  assert results['student']['cosine'] > start
  page = (tmp_path / 'run/report.html').read_text()
  assert re.findall('<h2>(.*?)</h2>', page)[2:-1] == [
      'Vectors', 'Layers', 'Attention', 'Where student and teacher differ most']
  # Each map has the network's own tokens.
  assert '>[CLS]</text>' in page and '>&lt;s&gt;</text>' in page
  # The student is exported with its own tokenizer.
  assert run('--mode=export', *args, config='job.py')[0] == 0
  exported = tokenizers.Tokenizer.from_file(
      str(tmp_path / 'run/export/tokenizer.json'))
  assert exported.encode('abba cad').tokens == [
      '<s>', 'abba', 'c', 'a', 'd', '</s>']


def test_classifiers_may_have_a_tokenizer_each(tmp_path):
  prepare(tmp_path, CLASSES, teacher=('bert_classification', word_piece()),
          student=('bert_classification', words_and_letters()))
  for role, eos in (('teacher', '[SEP]'), ('student', '</s>')):
    (tmp_path / role / 'tokenizer_config.json').write_text(
        json.dumps(dict(eos_token=eos)))
  config = resolve.from_pretrained(config_file.load(str(tmp_path / 'job.py')))
  student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  batch, = student.data.evaluation('test')
  for role, tokenizer in (('teacher', word_piece()),
                          ('student', words_and_letters())):
    tokenizer.enable_truncation(12)
    view = batch.view(role)
    assert [row[mask].tolist() for row, mask in zip(view.inputs, view.mask)
            if mask.any()] == [tokenizer.encode(text).ids for text in texts_of(
                tmp_path / 'test.jsonl')]
  # The special tokens of an export are the student's, and so are its files.
  assert export_lib.speaker_of(student) is None
  names = ('tokenizer.json', 'tokenizer_config.json')
  collected = tokenizer_files.collect(export_lib.tokenizer_of(student))
  assert {name: path.read_bytes() for name, path in collected.items()} == {
      name: (tmp_path / 'student' / name).read_bytes() for name in names}


def pair_of(made, between):
  """Returns the tokenizer with other tokens between the texts of a pair."""
  made.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', pair=f'[CLS] $A {between} $B:1 [SEP]:1',
      special_tokens=[(name, made.token_to_id(name))
                      for name in ('[CLS]', '[SEP]')])
  return made


@pytest.mark.parametrize('teacher, student, twice', (
    (word_piece(), surrounded(word_piece(), '[SEP]', '[CLS]'), True),
    (pair_of(word_piece(), '[SEP]'), pair_of(word_piece(), '[SEP] [SEP]'),
     True),
    (pair_of(word_piece(), '[SEP]'), pair_of(word_piece(), '[SEP]:1'), True),
    (word_piece(), surrounded(word_piece(), '[CLS]', '[SEP]'), False),
), ids=('around', 'pairs', 'types', 'same'))
def test_encoders_get_the_special_tokens_of_their_own(tmp_path, teacher,
                                                      student, twice):
  prepare(tmp_path, VECTORS, teacher=('bert', teacher),
          student=('distilbert', student))
  config = resolve.from_pretrained(config_file.load(str(tmp_path / 'job.py')))
  assert config.data.options.get('student_tokenizer') == (
      str(tmp_path / 'student') if twice else None)


def test_what_surrounds_masked_texts_is_said_where_tokenizers_differ(
    tmp_path, capsys):
  prepare(tmp_path, MASKED, teacher=('bert_masked_lm', word_piece()),
          student=('bert_masked_lm',
                   surrounded(word_piece(), '[SEP]', '[MASK]')))
  with notes.printed():
    resolve.from_pretrained(config_file.load(str(tmp_path / 'job.py')))
  err = capsys.readouterr().err
  for verb, ours, theirs in (('begin', 'CLS', 'SEP'), ('end', 'SEP', 'MASK')):
    assert (f"haikd: texts {verb} with '[{ours}]', as {tmp_path}/teacher has "
            f"it; with {tmp_path}/student, it would be '[{theirs}]'.\n") in err


@pytest.mark.slow
@pytest.mark.parametrize('config, teacher, student', (
    (MASKED, ('bert_masked_lm', word_piece()),
     ('bert_masked_lm', word_piece())),
    (VECTORS, ('bert', word_piece()), ('distilbert', words_and_letters())),
    (CLASSES, ('bert_classification', word_piece()),
     ('bert_classification', words_and_letters())),
), ids=('masked', 'vectors', 'classes'))
def test_a_job_that_was_cut_ends_bitwise_the_same(
    run, tmp_path, monkeypatch, config, teacher, student):
  prepare(tmp_path, config, teacher=teacher, student=student)
  args = ['--config.steps=4']
  assert run(*args, config='job.py')[0] == 0
  with monkeypatch.context() as patch:
    cut_after(patch, 2)
    assert run(*args, config='job.py', workdir='cut')[0] == 1
  assert run(*args, config='job.py', workdir='cut')[0] == 0
  assert identity(tmp_path / 'run') == identity(tmp_path / 'cut')
  assert run('--mode=eval', *args, config='job.py')[0] == 0
  results = results_of(tmp_path)
  evaluated = results_of(tmp_path, 'eval-test.json')
  for row, scores in results.items():
    scores['seconds'] = evaluated[row]['seconds']  # To the last save.
    assert evaluated[row] == pytest.approx(scores, abs=1e-6)
  assert results['student'] != results['student_start']


@pytest.mark.parametrize('args, match', (
    (['--config.losses.h={"loss": "feature_matching"}'],
     'config.losses.h: features must be one vector for each text, since '
     'teacher and student have a tokenizer each'),
    (['--config.distillation.use_attention_transfer=True'],
     'config.distillation.use_attention_transfer: attention must be one vector '
     'for each text'),
    (['--config.data.options.tokenizer={folder}/student'],
     'config.data.options.tokenizer must have the tokenizer of '
     'config.teacher.init'),
    (['--config.data.options.student_tokenizer={folder}/teacher'],
     'config.data.options.student_tokenizer must be the tokenizer that the '
     'weights of the student come with'),
))
def test_what_needs_the_same_positions_is_refused(run, apart, tmp_path, args,
                                                  match):
  args = [arg.replace('{folder}', str(tmp_path)) for arg in args]
  code, _, err = run(*args, config='job.py')
  assert code == 2 and match in err, err
