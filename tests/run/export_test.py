"""Import from another library, distillation, and export."""

import json
import math
import pathlib
import re
import shutil

import jax
from jax import export as jax_export
import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers

import haikd
from haikd import config as config_lib
from haikd import interop
from haikd.core import checks
from haikd.core import registry
from haikd.data import arrays
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.engine import mesh as mesh_lib
from haikd.run import card as card_lib
from haikd.run import export as export_lib
from haikd.run import job
from haikd.run import resolve
from haikd.run import trainees
from haikd.run import writer
from haikd.storage import checkpoint
from haikd.storage import files

GOLDEN = pathlib.Path(__file__).parents[1] / 'interop' / 'golden' / 'smollm2'


# The id of </s> stays when the vocabulary is pruned to half; the others go.
FIELDS = dict(eos_token_id=[2, 23], max_position_embeddings=131072,
              attention_dropout=0.1)
GENERATION = dict(eos_token_id=[2, 23], temperature=0.7, do_sample=True)


def words(size):
  return ['<pad>', '<unk>', '</s>', *(f'w{i}' for i in range(size - 3))]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A teacher with a tokenizer, and texts that use half of its words."""
  folder = tmp_path_factory.mktemp('pretrained')
  teacher = folder / 'teacher'
  shutil.copytree(GOLDEN, teacher)
  size = json.loads((teacher / 'config.json').read_text())['vocab_size']
  vocabulary = {word: i for i, word in enumerate(words(size))}
  made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(['<pad>', '<unk>', '</s>'])
  made.save(str(teacher / 'tokenizer.json'))
  config = json.loads((teacher / 'config.json').read_text())
  (teacher / 'config.json').write_text(json.dumps({**config, **FIELDS}))
  (teacher / 'generation_config.json').write_text(json.dumps(GENERATION))
  (teacher / 'chat_template.jinja').write_text('{{ messages }}')
  (teacher / 'tokenizer_config.json').write_text(
      json.dumps(dict(eos_token='</s>', pad_token='<pad>', unk_token='<unk>')))
  rng = np.random.RandomState(0)
  for split, count in (('train', 30), ('validation', 4), ('test', 4)):
    used = words(size)[3:size // 2]
    used = used[:-4] if split == 'test' else used
    (folder / f'{split}.jsonl').write_text(''.join(
        json.dumps(dict(text=' '.join(rng.choice(used, 11)))) + '\n'
        for _ in range(count)))
  return folder


def make_config(folder, **data):
  config = config_lib.base()
  config.steps, config.batch_size, config.checkpoint_every = 2, 8, 2
  config.data.name, config.data.source_dir = 'text', str(folder)
  config.data.data_dir = str(folder / 'prepared')
  config.data.options = dict(length=8, **data)
  config.teacher.init = config.student.init = f'hf:{folder / "teacher"}'
  config.student.init_layers = (1,)
  config.baseline = True
  return config


@pytest.fixture(scope='module', ids=('full', 'pruned'), params=(
    pytest.param(False, marks=pytest.mark.slow), True))
def run(request, folder):
  """Config, workdir and results of a run with a full or pruned vocabulary."""
  workdir = folder / f'run-{request.param}'
  config = make_config(folder, prune=request.param)
  results = job.train(config, workdir)
  return config, workdir, results


def test_a_student_starts_as_part_of_its_teacher_and_approaches_it(run):
  _, _, results = run
  assert list(results) == ['teacher', 'student_start', 'student_alone',
                           'student']
  assert results['teacher']['kl'] == 0
  assert results['student_start']['kl'] > results['student']['kl'] > 0
  assert results['student_start']['parameters'] == results['student'][
      'parameters'] < results['teacher']['parameters']


def test_an_export_is_bitwise_the_student(run, tmp_path):
  config, workdir, _ = run
  folder = export_lib.export(config, workdir, tmp_path / 'out')
  config = make_config(workdir.parent)
  config.data.options = dict(
      length=8, tokenizer=str(folder))  # The exported one, pruned or not.
  config.student.init, config.student.init_layers = f'hf:{folder}', None
  config.teacher.init = f'hf:{folder}'
  config.data.data_dir = str(tmp_path)
  config = resolve.from_pretrained(config)
  student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  params = student.start('student').network.params
  expected, _ = checkpoint.load_network(workdir)
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_program_has_the_tokenizer_of_its_ids(run, tmp_path):
  config, workdir, _ = run
  folder = export_lib.export(config, workdir, tmp_path / 'out', 'stablehlo')
  tokenizer = tokenizer_lib.load(str(folder))
  ids = np.int32([tokenizer.encode_batch(['w3 w5 w4'])[0].ids])
  inputs = dict(tokens=ids, segments=np.ones_like(ids),
                positions=np.arange(3, dtype=np.int32)[None])
  mask = np.ones(ids.shape, bool)
  card = (folder / 'README.md').read_text()
  assert "inputs['segments']` | `[batch, length]` | int32 | one number" in card
  assert "Tokenizer.from_file('tokenizer.json')` gives the ids." in card
  program = jax_export.deserialize(
      bytearray((folder / 'model.stablehlo').read_bytes()))
  weights = dict(np.load(folder / 'weights.npz'))
  np.testing.assert_allclose(
      program.call(weights, inputs, mask),
      haikd.load(workdir).apply(inputs, mask), rtol=1e-4, atol=1e-5)


def test_an_export_has_a_tokenizer_of_its_vocabulary_size(run, tmp_path):
  config, workdir, _ = run
  folder = export_lib.export(config, workdir, tmp_path / 'out')
  size = json.loads((folder / 'config.json').read_text())['vocab_size']
  tokenizer = tokenizer_lib.load(str(folder))
  assert tokenizer.size == size
  encoded, = tokenizer.encode_batch(['w3 w5 w4'])
  assert tokenizer.decode(encoded.ids) == 'w3 w5 w4'
  full_size = json.loads((GOLDEN / 'config.json').read_text())['vocab_size']
  pruned = config.data.options.prune
  # Pruning leaves half of the tokens, including the three special ones.
  assert size == (full_size // 2 if pruned else full_size)


def test_the_card_has_results_and_config_but_no_path(run, tmp_path):
  config, workdir, results = run
  card = (export_lib.export(config, workdir, tmp_path / 'out') /
          'README.md').read_text()
  accuracy = f"{results['student']['accuracy']:.2%}"
  row, = (line for line in card.splitlines() if '**this model**' in line)
  assert accuracy in row
  assert f"{results['student']['perplexity']:.2f}" in row
  start = card.index('```json') + len('```json')
  written = json.loads(card[start:card.index('```', start)])
  assert written['student']['init_layers'] == [1]
  assert str(workdir.parent) not in card


def test_a_pruned_teacher_is_renormalised_exactly(folder):
  """The pruned softmax is the full one, divided by the kept tokens' sum."""
  logits = []
  for prune in (False, True):
    config = resolve.from_pretrained(make_config(folder, prune=prune))
    student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
    batch = next(iter(student.data.evaluation('test')))
    teacher = student.start('teacher').network
    output, _ = student.program.objective.teacher.apply(
        teacher.params, teacher.state, None, batch, is_training=False)
    text = student.data.text_of('teacher')
    logits.append((output.logits.materialise(), batch, text.kept_ids))
  (full, batch, _), (pruned, pruned_batch, kept) = logits
  real = batch.mask
  np.testing.assert_array_equal(kept[pruned_batch.inputs['tokens']][real],
                                batch.inputs['tokens'][real])
  expected = np.exp(np.float64(full - full.max(-1, keepdims=True)))[..., kept]
  expected /= expected.sum(-1, keepdims=True)
  np.testing.assert_allclose(
      jax.nn.softmax(pruned)[real], expected[real], rtol=1e-4, atol=1e-7)


def test_evaluation_has_the_student_at_its_start_too(run):
  config, workdir, results = run
  evaluated = job.evaluate(config, workdir)
  assert list(evaluated) == list(results)
  for name, row in results.items():
    for metric in ('perplexity', 'kl', 'parameters'):
      assert evaluated[name][metric] == pytest.approx(row[metric], rel=1e-6)


@pytest.fixture(scope='module')
def renamed(folder, tmp_path_factory):
  """A run with a pruned vocabulary, whose texts got other words since."""
  path = tmp_path_factory.mktemp('renamed')
  for split in ('train', 'validation', 'test'):
    shutil.copy(folder / f'{split}.jsonl', path)
  config = make_config(folder, prune=True)
  config.baseline = False
  config.data.source_dir = str(path)
  job.train(config, path / 'run')
  texts = (path / 'train.jsonl').read_text()
  (path / 'train.jsonl').write_text(
      re.sub(r'w(\d+)', lambda match: f'w{int(match[1]) + 9}', texts))
  return config, path / 'run'


@pytest.mark.parametrize('do', (export_lib.export, job.evaluate, job.train))
def test_a_student_of_other_tokens_is_refused(renamed, do):
  """Pruning to other texts leaves as many words, but different ones."""
  with pytest.raises(checks.DataError, match="^the data's tokenizer must be"):
    do(*renamed)


def test_a_score_that_is_not_finite_is_in_the_card(run, tmp_path, monkeypatch):
  config, workdir, results = run
  broken = dict(results, student=dict(results['student'], perplexity=math.inf,
                                      kl=math.nan))
  writer.write_results(tmp_path, broken)
  monkeypatch.setattr(card_lib, '_results',
                      lambda workdir: files.read_json(tmp_path / 'result.json'))
  card = (export_lib.export(config, workdir, tmp_path / 'out') /
          'README.md').read_text()
  row, = (line for line in card.splitlines() if '**this model**' in line)
  assert ' inf ' in row and ' nan ' in row


def test_an_export_says_what_its_original_says(run, folder, tmp_path):
  """All but the number of layers and, if it is pruned, of tokens."""
  config, workdir, _ = run
  out = export_lib.export(config, workdir, tmp_path / 'out')
  read = lambda path: json.loads(path.read_text())  # noqa: E731
  original = read(folder / 'teacher' / 'config.json')
  pruned = config.data.options.prune
  eos = [2] if pruned else [2, 23]
  size = original['vocab_size'] // (2 if pruned else 1)
  assert read(out / 'config.json') == dict(
      original, num_hidden_layers=1, eos_token_id=eos, vocab_size=size)
  assert read(out / 'generation_config.json') == dict(
      GENERATION, eos_token_id=eos)
  for name in ('tokenizer_config.json', 'chat_template.jinja'):
    assert (out / name).read_text() == (
        folder / 'teacher' / name).read_text()
  if not pruned:
    assert (out / 'tokenizer.json').read_bytes() == (
        folder / 'teacher' / 'tokenizer.json').read_bytes()


def test_a_student_of_a_student_has_the_same_original(run):
  config, workdir, _ = run
  network = config_lib.network()
  network.init = str(workdir)
  assert export_lib.original_of(network) == interop.Original(
      config.student.init, [1], [])


def test_a_run_from_before_a_field_has_its_default(tmp_path):
  files.write_json(tmp_path / 'config.json', dict(
      student=dict(model='llama', init='hf:models/a')))
  network = config_lib.network()
  network.init = str(tmp_path)
  assert export_lib.original_of(network) == interop.Original('hf:models/a')


def test_the_card_says_what_was_ignored_of_an_original(run, tmp_path,
                                                       monkeypatch):
  """Also if another run read it, whose student the student began as."""
  config, workdir, _ = run
  original_of = export_lib.original_of
  monkeypatch.setattr(export_lib, 'original_of', lambda network: (
      original_of(network)._replace(ignore=['head_gate'])))
  card = (export_lib.export(config, workdir, tmp_path / 'out') /
          'README.md').read_text()
  for role in ('teacher', 'student'):
    assert (f'These fields and tensors were ignored when the {role} was read: '
            '`head_gate`.\n') in card


def test_an_image_model_keeps_classes_and_scale(tmp_path):
  with registry.datasets.temporary():

    @haikd.register_dataset()
    def pictures(split, *, classes=('cat', 'dog', 'owl')):
      images = np.random.RandomState(0).rand(8, 4, 4, 3).astype(np.float32)
      return arrays.Arrays(dict(image=images, label=np.arange(8) % 3),
                           num_classes=len(classes))

    config = config_lib.base()
    config.steps, config.batch_size, config.teacher.train.steps = 1, 8, 1
    config.data.name = 'pictures'
    config.data.options = dict(classes=('cat', 'dog', 'owl'))
    with config.ignore_type():
      config.data.mean, config.data.std = (0.1, 0.2, 0.3), 0.5
    for network in (config.teacher, config.student):
      network.model = 'vit'
      network.options = dict(patch_size=2, width=8, depth=1, heads=2,
                             image_size=4, channels=3)
    job.train(config, tmp_path)
    folder = export_lib.export(config, tmp_path)
  written = json.loads((folder / 'config.json').read_text())
  assert written['id2label'] == {'0': 'cat', '1': 'dog', '2': 'owl'}
  scale = json.loads((folder / 'preprocessor_config.json').read_text())
  assert scale['image_mean'] == [0.1, 0.2, 0.3]
  assert scale['image_std'] == [0.5, 0.5, 0.5]
  assert interop.describe(f'hf:{folder}').options['num_classes'] == 3


def test_only_a_trained_student_is_exported(folder, tmp_path):
  config = make_config(folder)
  with pytest.raises(checks.DataError, match='workdir must be that of a run'):
    export_lib.export(config, tmp_path / 'none')


def test_a_model_unknown_to_transformers_is_refused_by_name(tmp_path):
  config = config_lib.base()
  config.steps, config.batch_size, config.teacher.train.steps = 1, 8, 1
  config.data.name = 'synthetic'
  config.student.options = config.teacher.options = dict(hidden=(2,))
  job.train(config, tmp_path)
  with pytest.raises(checks.ConfigError, match="transformers has; got "
                     "'mlp'"):
    export_lib.export(config, tmp_path)
