"""Teachers and students whose vocabularies differ in size or in spelling.

The expected numbers were computed with transformers 5.24 in float64 from the
folders of `write_model` and the rows of `DOCUMENTS`, each with its eos, over
the first 22 logits:

  logits = model(row[None]).logits[0, :-1, :22].double().log_softmax(-1)
  -logits.gather(1, row[1:, None]).mean()
"""

import functools
import json

import numpy as np
import pytest
from safetensors import numpy as safetensors

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import notes
from haikd.run import resolve

WORDS = [f'w{i}' for i in range(20)]
TOKENS = ['[UNK]', '</s>', *WORDS]  # 22 of them.
DOCUMENTS = [' '.join(f'w{(7 * i + j * j) % 20}' for j in range(5))
             for i in range(16)]
LENGTH = 8

CONFIG = """
from haikd import config as config_lib
from haikd.core import notes

def get_config():
  config = config_lib.base()
  config.steps = 2
  config.batch_size = config.evaluation.batch_size = 16
  config.data.name = '{data}'
  config.data.source_dir = '{folder}/texts'
  config.data.data_dir = '{folder}/prepared'
  config.data.options = dict(length={length}, {options})
  config.teacher.init = 'hf:{folder}/{teacher}'
  config.student.init = 'hf:{folder}/{student}'
  config.distillation.temperature = 1.0
  config.distillation.alpha = 0.5
  return config
"""


def write_model(folder, rows, seed, *, tied=True, tokens=TOKENS, eos='</s>',
                **definition):
  """Writes a tiny Llama whose table has more rows than there are tokens."""
  folder.mkdir()
  rand = np.random.RandomState(seed).standard_normal
  width, hidden, depth = 8, 12, 2
  weights = {'model.embed_tokens.weight': rand((32, width))[:rows],
             'model.norm.weight': np.ones(width)}
  for i in range(depth):
    layer = f'model.layers.{i}.'
    for name in 'qkvo':
      weights[f'{layer}self_attn.{name}_proj.weight'] = rand((width, width))
    for name, shape in (('gate', (hidden, width)), ('up', (hidden, width)),
                        ('down', (width, hidden))):
      weights[f'{layer}mlp.{name}_proj.weight'] = rand(shape)
    for name in ('input', 'post_attention'):
      weights[f'{layer}{name}_layernorm.weight'] = np.ones(width)
  if not tied:
    weights['lm_head.weight'] = rand((32, width))[:rows]
  safetensors.save_file(
      {name: x.astype(np.float32) for name, x in weights.items()},
      folder / 'model.safetensors')
  (folder / 'config.json').write_text(json.dumps(dict(
      architectures=['LlamaForCausalLM'], model_type='llama', vocab_size=rows,
      hidden_size=width, intermediate_size=hidden, num_hidden_layers=depth,
      num_attention_heads=2, num_key_value_heads=2, rms_norm_eps=1e-5,
      hidden_act='silu', max_position_embeddings=32,
      tie_word_embeddings=tied)))
  (folder / 'tokenizer.json').write_text(json.dumps(dict(dict(
      version='1.0', truncation=None, padding=None, added_tokens=[
          dict(id=i, content=token, special=True, normalized=False,
               lstrip=False, rstrip=False, single_word=False)
          for i, token in enumerate(tokens) if token not in WORDS],
      normalizer=None, pre_tokenizer=dict(type='WhitespaceSplit'),
      post_processor=None, decoder=None, model=dict(
          type='WordLevel', unk_token='[UNK]',
          vocab={token: i for i, token in enumerate(tokens)})), **definition)))
  (folder / 'tokenizer_config.json').write_text(json.dumps(dict(
      tokenizer_class='PreTrainedTokenizerFast', eos_token=eos,
      unk_token='[UNK]')))


def write_texts(folder):
  folder.mkdir()
  for split in ('train', 'validation', 'test'):
    (folder / f'{split}.jsonl').write_text(''.join(
        json.dumps(dict(text=text, prompt=text.split()[0],
                        completion=text[text.index(' '):])) + '\n'
        for text in DOCUMENTS))


@pytest.fixture
def start(run, tmp_path):
  """Runs a job; returns exit code, messages and results."""
  write_texts(tmp_path / 'texts')

  def start(*args, data='text', options="form='padded'", teacher='teacher',
            student='student', workdir='run'):
    (tmp_path / 'job.py').write_text(CONFIG.format(
        folder=tmp_path, data=data, options=options, teacher=teacher,
        student=student, length=LENGTH))
    code, _, err = run(*args, config='job.py', workdir=workdir)
    path = tmp_path / workdir / 'result.json'
    return code, err, json.loads(path.read_text()) if code == 0 else {}

  return start


@pytest.mark.parametrize('data', [
    'text', pytest.param('completions', marks=pytest.mark.slow)])
def test_padded_tables_are_compared_over_the_tokens(data, start, tmp_path):
  """Training goes bitwise as with tables of just the tokens."""
  write_model(tmp_path / 'teacher', 28, 0, tied=False)
  write_model(tmp_path / 'student', 25, 1)
  write_model(tmp_path / 'exact_teacher', 22, 0, tied=False)
  write_model(tmp_path / 'exact_student', 22, 1)
  options = "form='padded'" if data == 'text' else ''
  code, err, padded = start(data=data, options=options)
  assert code == 0
  assert err == (
      'haikd: of the 28 logits of the teacher and the 25 of the student, the '
      'first 22 are used, which are those of the tokenizer; probabilities are '
      'normalised over them.\n')
  if data == 'text':
    teacher, student = padded['teacher'], padded['student_start']
    assert abs(teacher['cross_entropy'] - 5.287615) < 1e-4
    assert abs(student['cross_entropy'] - 5.612992) < 1e-4
    assert abs(student['kl'] - 3.952705) < 1e-4
  code, err, exact = start(data=data, options=options, teacher='exact_teacher',
                           student='exact_student', workdir='exact')
  assert (code, err) == (0, '')
  for row in (*padded.values(), *exact.values()):
    del row['parameters'], row['seconds']
  assert padded == exact
  assert start('--mode=export', data=data, options=options)[0] == 0
  read = lambda folder: safetensors.load_file(folder / 'model.safetensors')
  exported, begun = read(tmp_path / 'run/export'), read(tmp_path / 'student')
  name = 'model.embed_tokens.weight'
  np.testing.assert_array_equal(exported[name][22:], begun[name][22:])
  assert (exported[name][:22] != begun[name][:22]).any()


@pytest.mark.parametrize('case', ['eos', 'spelling', 'more', 'more_teacher'])
def test_tokenizers_that_are_one_are_taken(case, tmp_path, capsys):
  more = dict(tokens=[*TOKENS, '<a>', '<b>'])
  write_model(tmp_path / 'teacher', 26, 0,
              **(more if case == 'more_teacher' else {}))
  student = dict(eos=dict(eos='[UNK]'),
                 spelling=dict(decoder=dict(type='Fuse')))
  write_model(tmp_path / 'student', 26, 1,
              **(more if case == 'more' else student.get(case, {})))
  config = config_lib.base()
  config.data.name = 'text'
  config.teacher.init, config.student.init = (
      f'hf:{tmp_path / role}' for role in ('teacher', 'student'))
  with notes.printed():
    resolved = resolve.from_pretrained(config)
  ends = (f"texts end with '</s>', the eos of {tmp_path / 'teacher'}; that of "
          f"{tmp_path / 'student'} is '[UNK]'")
  assert (ends in capsys.readouterr().err) == (case == 'eos')
  assert resolve.from_pretrained(resolved) == resolved
  fewest = 'student' if case == 'more_teacher' else 'teacher'
  limit = 22 if 'more' in case else None
  assert resolved.data.options.tokenizer == str(tmp_path / fewest)
  assert resolved.data.options.vocabulary == (limit or 26)
  for network in (resolved.teacher, resolved.student):
    assert network.used_classes == limit
    assert network.options.get('num_classes') == (limit and 26)


@pytest.mark.parametrize('options, said', [
    ({}, True), (dict(bos='[UNK]'), False),
    (dict(add_special_tokens=False), False)])
def test_what_begins_texts_is_said_where_tokenizers_differ(
    options, said, tmp_path, capsys):
  write_model(tmp_path / 'teacher', 22, 0, post_processor=dict(
      type='TemplateProcessing',
      single=[dict(SpecialToken=dict(id='</s>', type_id=0)),
              dict(Sequence=dict(id='A', type_id=0))],
      pair=[dict(Sequence=dict(id='A', type_id=0)),
            dict(Sequence=dict(id='B', type_id=1))],
      special_tokens={'</s>': dict(id='</s>', ids=[1], tokens=['</s>'])}))
  write_model(tmp_path / 'student', 22, 1)
  config = config_lib.base()
  config.data.name, config.data.options = 'text', options
  config.teacher.init, config.student.init = (
      f'hf:{tmp_path / role}' for role in ('teacher', 'student'))
  with notes.printed():
    resolve.from_pretrained(config)
  assert (f"texts begin with '</s>', as {tmp_path / 'teacher'} has it; with "
          f"{tmp_path / 'student'}, it would be no special token. "
          'config.data.options.bos chooses another.'
          in capsys.readouterr().err) == said


def write_template(folder, template):
  path = folder / 'tokenizer_config.json'
  config = json.loads(path.read_text())
  path.write_text(json.dumps(dict(config, chat_template=template)))


@pytest.mark.parametrize('template, own, error, said', [
    ('{{ 1 }}</s>', None, '',
     'by the chat template of {teacher}, since {student} has none'),
    ('{{ 1 }}<a>', None,
     'the tokenizer {student} must have the tokens that the chat template of '
     '{teacher} writes; got none of <a>. Give its network', ''),
    ('{{ 1 }}<a>', '{{ 2 }}', '',
     'by the chat template of {student}; {teacher} has another'),
    ('{{ 1 }}', '{{ 1 }}', '', ''),
])
def test_base_student_takes_the_chat_template_of_its_teacher(
    template, own, error, said, tmp_path, capsys):
  write_model(tmp_path / 'teacher', 26, 0, tokens=[*TOKENS, '<a>'])
  write_model(tmp_path / 'student', 22, 1)
  write_template(tmp_path / 'teacher', template)
  if own is not None:
    write_template(tmp_path / 'student', own)
  config = config_lib.base()
  config.data.name = 'chat'
  names = {role: f'{tmp_path / role}' for role in ('teacher', 'student')}
  config.teacher.init, config.student.init = (
      f'hf:{path}' for path in names.values())
  with notes.printed():
    if error:
      with pytest.raises(checks.ConfigError, match=error.format(**names)):
        resolve.from_pretrained(config)
      return
    resolved = resolve.from_pretrained(config)
  assert resolved.data.options.tokenizer == names['student']
  assert resolved.data.options.get('chat_template') == (
      None if own else names['teacher'])
  err = capsys.readouterr().err
  assert said.format(**names) in err
  assert ('chat template' in err) == bool(said)


@pytest.mark.slow
def test_ids_of_other_tokens_are_refused(start, tmp_path):
  write_model(tmp_path / 'teacher', 24, 0)
  swapped = [*TOKENS[:5], TOKENS[6], TOKENS[5], *TOKENS[7:]]
  write_model(tmp_path / 'student', 24, 1, tokens=swapped)
  code, err, _ = start()
  assert code == 2
  assert "id 5 is 'w3' and 'w4', id 6 is 'w4' and 'w3'" in err
  assert 'start the student without init' in err
  # What the message recommends.
  code, err, _ = start(
      '--config.student.init=None', '--config.student.model=llama',
      '--config.student.options.width=8', '--config.student.options.depth=1',
      '--config.student.options.heads=1', '--config.steps=1')
  assert code == 0, err


def test_a_tokenizer_of_the_data_with_other_ids_is_refused(start, tmp_path):
  write_model(tmp_path / 'teacher', 24, 0)
  write_model(tmp_path / 'student', 24, 1, tokens=[*TOKENS[::-1]])
  code, err, _ = start(
      student='teacher', options=f"tokenizer='{tmp_path / 'student'}'")
  assert code == 2 and 'config.data.options.tokenizer must have' in err


def test_a_tokenizer_of_the_data_with_further_tokens_is_refused(tmp_path):
  write_model(tmp_path / 'teacher', 24, 0)
  write_model(tmp_path / 'more', 24, 0, tokens=[*TOKENS, '<a>'])
  config = config_lib.base()
  config.data.name = 'text'
  config.data.options.tokenizer = str(tmp_path / 'more')
  config.teacher.init = f"hf:{tmp_path / 'teacher'}"
  config.student.model = 'llama'
  with pytest.raises(checks.ConfigError, match='no tokens beyond .* has 22'):
    resolve.from_pretrained(config)


@pytest.mark.parametrize('count', [21, 25])
def test_used_classes_are_those_of_data_and_network(count, start, tmp_path):
  write_model(tmp_path / 'teacher', 24, 0)
  code, err, _ = start(
      f'--config.teacher.used_classes={count}', student='teacher',
      options="form='padded', vocabulary=22")
  assert code == 2
  assert 'config.teacher.used_classes must lie between 22, ' in err


def test_tables_of_other_lengths_without_a_tokenizer(start, tmp_path):
  write_model(tmp_path / 'teacher', 28, 0)
  write_model(tmp_path / 'student', 25, 1)
  for role in ('teacher', 'student'):
    (tmp_path / role / 'tokenizer.json').unlink()
  for split in ('train', 'validation', 'test'):
    np.save(tmp_path / 'texts' / f'{split}.npy', np.arange(160) % 22)
  tokens = functools.partial(
      start, '--config.data.data_dir=None', data='tokens')
  code, err, _ = tokens(options='')
  assert code == 2 and 'config.data.options.vocabulary must be' in err
  code, err, _ = tokens(options='vocabulary=22')
  assert code == 0, err
  assert 'the first 22 are used' in err
