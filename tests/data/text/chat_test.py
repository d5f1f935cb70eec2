"""Chats: ids as transformers has them, learned parts worked out by hand.

make_chat_goldens.py wrote the ids with transformers 5.24.
"""

import datetime
import decimal
import importlib.util
import json
import logging
import pathlib
import re
import resource
import time

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.data import description
from haikd.data import pipeline
from haikd.data import source
from haikd.data.text import tokenizer as tokenizer_lib

HERE = pathlib.Path(__file__).parent
GOLDEN = json.loads((HERE / 'chat_goldens.json').read_text())


def load_module():
  path = HERE / 'make_chat_goldens.py'
  spec = importlib.util.spec_from_file_location('make_chat_goldens', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


CASES = load_module()
CHATML = CASES.CHATML
HELLO = 'Hello.\n\nThe café is open'

USER = dict(role='user', content='Hi')
ANSWER = dict(role='assistant', content='Yes')


@pytest.fixture
def open_chats(tmp_path):
  """Opens chats with the tokenizer of a case."""

  def call(case, *records, length=256, **options):
    folder = tmp_path / case
    if not folder.exists():
      CASES.write_tokenizer(case, folder)
    (tmp_path / 'files').mkdir(exist_ok=True)
    (tmp_path / 'files' / 'train.jsonl').write_text(
        ''.join(f'{json.dumps(record)}\n' for record in records))
    return source.open_source(
        'chat', 'train',
        options=dict(tokenizer=str(folder), length=length, **options),
        source_dir=str(tmp_path / 'files'), data_dir=str(tmp_path / 'data'))

  return call


def open_case(open_chats, case, **options):
  return open_chats(case, dict(messages=CASES.CASES[case][1]), **options)


def ids_of(row):
  return row['tokens'][row['mask']].tolist()


def learned(opened, row):
  """Returns the texts that a row learns."""
  loaded = tokenizer_lib.load(opened.text.tokenizer)
  targets = np.flatnonzero(row['target_mask'])
  runs = np.split(targets, np.flatnonzero(np.diff(targets) > 1) + 1)
  return [loaded.decode(row['label'][run]) for run in runs]


# The learned texts of the whole chat, by hand from the templates. In pieces, a
# text begins with a blank, and so does what follows a special token.
@pytest.mark.parametrize('case, expected', [
    ('chatml', [f'{HELLO}<|im_end|>', 'Yes<|im_end|>']),
    ('llama3', [f'{HELLO}<|eot_id|>', 'Yes<|eot_id|>']),
    ('qwen2', [f'{HELLO}<|im_end|>', 'Yes<|im_end|>']),
    ('gemma2', [f'{HELLO}<end_of_turn>', 'Yes<end_of_turn>']),
    ('mistral', [f'  {HELLO}</s>', '  Yes</s>']),
    ('zephyr', [f'{HELLO}</s>', 'Yes</s>']),
    ('marked', [f'{HELLO}<|im_end|>', 'Yes<|im_end|>']),
    ('qwen3_thoughts', ['<think>\nIt is.\n</think>\n\nYes<|im_end|>']),
])
def test_answers_are_learned_up_to_their_stop(open_chats, case, expected):
  opened = open_case(open_chats, case)
  assert ids_of(opened[0]) == GOLDEN[case][0]
  assert learned(opened, opened[0]) == expected


@pytest.mark.slow
def test_goldens_are_those_of_the_present_transformers():
  pytest.importorskip('transformers')
  assert CASES.expected() == GOLDEN


def test_answer_that_is_rewritten_later_has_a_row_of_its_own(open_chats,
                                                             caplog):
  with caplog.at_level(logging.INFO, 'haikd'):
    opened = open_case(open_chats, 'qwen3')
  # The template writes <think></think> in the last answer only, and nobody
  # learns to think nothing.
  rows = [opened[i] for i in range(len(opened))]
  assert [ids_of(row) for row in rows] == GOLDEN['qwen3']
  assert [learned(opened, row) for row in rows] == [
      ['Yes<|im_end|>'], [f'{HELLO}<|im_end|>']]
  assert ("split 'train', of 1 records: 1 chats have answers that the chat "
          'template writes differently') in caplog.text


def test_marks_of_a_template_are_those_of_transformers(open_chats):
  row = open_case(open_chats, 'marked')[0]
  # A position predicts the token after it.
  assert row['target_mask'][:len(GOLDEN['marks']) - 1].tolist() == [
      bool(mark) for mark in GOLDEN['marks'][1:]]


def test_prompt_of_messages_is_not_learned(open_chats):
  messages = CASES.CASES['chatml'][1]
  opened = open_chats('chatml', dict(prompt=messages[:3],
                                     completion=messages[3:]))
  assert ids_of(opened[0]) == GOLDEN['chatml'][0]
  assert learned(opened, opened[0]) == ['Yes<|im_end|>']


def test_long_chats_lose_their_end_and_are_named(open_chats, caplog):
  messages = CASES.CASES['chatml'][1]
  with caplog.at_level(logging.INFO, 'haikd'):
    opened = open_chats('chatml', dict(messages=messages),
                        dict(messages=[dict(USER, content='x' * 80), ANSWER]),
                        length=60, padding='left')
  assert ids_of(opened[0]) == GOLDEN['chatml'][0][:60] and len(opened) == 1
  assert '1 chats lose their end, beyond 60 tokens' in caplog.text
  assert '1 chats are left out, since their first 60 tokens' in caplog.text
  with pytest.raises(checks.DataError, match='must hold texts; got none: 2 '
                     'chats are left out, since their first 8 tokens'):
    open_chats('chatml', dict(messages=messages), dict(messages=messages),
               length=8)


def test_tokens_of_options_reach_the_template(open_chats, caplog):
  template = ('{{ note }}{{ bos_token }}{% for m in messages %}{{ m.content }}'
              '{{ eos_token }}{% endfor %}')
  with caplog.at_level(logging.INFO, 'haikd'):
    opened = open_chats(
        'gemma2', dict(messages=[ANSWER]), chat_template=template, eos='<bos>',
        bos='<start_of_turn>', pad='Ċ', template_options=dict(note=' '))
  loaded = tokenizer_lib.load(opened.text.tokenizer)
  assert loaded.decode(ids_of(opened[0])) == ' <start_of_turn>Yes<bos>'
  assert learned(opened, opened[0]) == ['Yes<bos>']
  assert opened[0]['tokens'][-1] == loaded.id_of('Ċ')
  assert 'another token than' not in caplog.text
  # An export has the template that the student has learned, which writes the
  # same without these options.
  assert loaded.templates == dict(default=(
      "{% set eos_token = '<bos>' %}{% set bos_token = '<start_of_turn>' %}"
      "{% set note = note if note is defined else ' ' %}" + template))
  assert 'chat_template' not in loaded.config
  own = open_case(open_chats, 'gemma2').text.tokenizer
  assert tokenizer_lib.load(own).config['chat_template'] == CASES.GEMMA2


def test_template_may_be_in_a_file_or_have_a_name(open_chats, tmp_path):
  open_case(open_chats, 'chatml')
  (tmp_path / 'own.jinja').write_text('Ye' + CASES.MARKED)
  opened = open_case(open_chats, 'chatml',
                     chat_template=str(tmp_path / 'own.jinja'))
  first = tokenizer_lib.load(opened.text.tokenizer).id_of('Ye')
  assert ids_of(opened[0]) == [first, *GOLDEN['marked'][0]]
  config = tmp_path / 'chatml' / 'tokenizer_config.json'
  values = json.loads(config.read_text())
  values['chat_template'] = [dict(name='default', template='{{ 1 }}'),
                             dict(name='own', template=CASES.MARKED)]
  config.write_text(json.dumps(values))
  opened = open_case(open_chats, 'chatml', chat_template='own')
  assert ids_of(opened[0]) == GOLDEN['marked'][0]
  with pytest.raises(checks.ConfigError,
                     match="got 'owm'. Did you mean 'own'"):
    open_case(open_chats, 'chatml', chat_template='owm')
  values['chat_template'][0]['name'] = 'tools'
  config.write_text(json.dumps(values))
  with pytest.raises(checks.ConfigError, match="none is called 'default'; got "
                     'None. Known: own, tools.'):
    open_case(open_chats, 'chatml')


@pytest.mark.parametrize('name, content', [
    ('chat_template.jinja', CHATML),
    ('chat_template.json', json.dumps(dict(chat_template=CHATML))),
    ('tokenizer_config.json', '{"eos_token": "<|im_end|>"}'),
])
def test_template_may_have_a_file_beside_the_tokenizer(open_chats, tmp_path,
                                                       name, content):
  CASES.write_tokenizer('chatml', tmp_path / 'chatml')
  (tmp_path / 'chatml' / 'tokenizer_config.json').write_text(
      '{"eos_token": "<|im_end|>"}')
  (tmp_path / 'chatml' / name).write_text(content)
  if name != 'tokenizer_config.json':
    assert ids_of(open_case(open_chats, 'chatml')[0]) == GOLDEN['chatml'][0]
    return
  with pytest.raises(checks.ConfigError, match='chat_template must be a '
                     'template or its file, since the tokenizer has none'):
    open_case(open_chats, 'chatml')


def write_more_templates(folder):
  """Writes a tokenizer with a default template and two others."""
  CASES.write_tokenizer('chatml', folder)
  (folder / 'chat_template.jinja').write_text(CHATML)
  (folder / 'additional_chat_templates').mkdir()
  for name, template in dict(marked=CASES.MARKED, short='{{ 1 }}').items():
    (folder / 'additional_chat_templates' / f'{name}.jinja').write_text(
        template)


def test_additional_templates_are_chosen_by_name(open_chats, tmp_path):
  write_more_templates(tmp_path / 'chatml')
  opened = open_case(open_chats, 'chatml')
  assert ids_of(opened[0]) == GOLDEN['chatml'][0]
  # What is prepared, pruned or not, has all of them, for an export.
  assert {*tokenizer_lib.load(opened.text.tokenizer).templates} == {
      'default', 'marked', 'short'}
  opened = open_case(open_chats, 'chatml', chat_template='marked')
  assert ids_of(opened[0]) == GOLDEN['marked'][0]
  assert tokenizer_lib.load(opened.text.tokenizer).templates == dict(
      default=CASES.MARKED)
  with pytest.raises(checks.ConfigError, match="got 'markd'. Did you mean "
                     r"'marked'\? Known: default, marked, short"):
    open_case(open_chats, 'chatml', chat_template='markd')
  (tmp_path / 'chatml' / 'chat_template.jinja').unlink()
  with pytest.raises(checks.ConfigError, match="none is called 'default'"):
    open_case(open_chats, 'chatml')


@pytest.mark.parametrize('template, options', [
    (CASES.QWEN3 + '{% if enable_thinking %}no{% endif %}',
     dict(enable_thinking=False)),
    ('\n{{ note }}{{ more[2].a }}' + CASES.ZEPHYR,
     dict(note="it's\n", more=[1, None, dict(a=True)])),
])
@pytest.mark.slow
def test_transformers_needs_no_options_for_a_prepared_template(
    open_chats, template, options):
  transformers = pytest.importorskip('transformers')
  records = dict(messages=CASES.CASES['chatml'][1])
  opened = open_chats('chatml', records, chat_template=template,
                      eos='<|im_start|>', template_options=options)
  loaded = transformers.AutoTokenizer.from_pretrained(opened.text.tokenizer)
  assert ids_of(opened[0]) == loaded.apply_chat_template(
      records['messages'], tokenize=True, return_dict=False)


def test_chats_and_texts_are_a_mixture(open_chats, tmp_path):
  open_case(open_chats, 'chatml')
  config = config_lib.base()
  config.batch_size = 8
  config.data.data_dir = str(tmp_path / 'data')
  config.data.name = 'text'
  config.data.options = dict(tokenizer=str(tmp_path / 'chatml'), length=256,
                             form='padded')
  config.data.mixture = dict(chats=dict(
      name='chat', weight=0.5, source_dir=str(tmp_path / 'files'),
      options=dict(chat_template=CASES.MARKED)), texts=dict(
          weight=0.5, source_dir=str(tmp_path / 'texts')))
  (tmp_path / 'texts').mkdir()
  (tmp_path / 'texts' / 'train.txt').write_text('Yes')
  config.evaluation.split = config.evaluation.final = 'train'
  data = pipeline.build_data(config)
  loaded = tokenizer_lib.load(data.text_of('student').tokenizer)
  assert loaded.templates == dict(default=CASES.MARKED)
  batch, = data.evaluation('train')
  rows = [batch.inputs[i][batch.mask[i]].tolist() for i in range(2)]
  assert rows == [GOLDEN['marked'][0], [
      loaded.id_of('Yes'), loaded.id_of('<|im_end|>')]]


@pytest.mark.slow
def test_additional_templates_are_those_of_transformers(tmp_path):
  transformers = pytest.importorskip('transformers')
  write_more_templates(tmp_path)
  ours = tokenizer_lib.load(str(tmp_path)).templates
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert theirs.chat_template == ours
  # As transformers writes them, and as haikd does.
  theirs.save_pretrained(tmp_path / 'theirs')
  assert tokenizer_lib.load(str(tmp_path / 'theirs')).templates == ours
  tokenizer_lib.load(str(tmp_path)).save(tmp_path / 'ours')
  assert transformers.AutoTokenizer.from_pretrained(
      tmp_path / 'ours').chat_template == ours


@pytest.mark.parametrize('case, messages, text', [
    ('gemma2', [dict(USER, role='system'), USER, ANSWER],
     "line 1 of .*train.jsonl' must suit the chat template; got the error "
     "'System role not supported'. Change or remove the messages"),
    ('mistral', [USER, USER, ANSWER], "'Roles must alternate user/assistant.'"),
    ('chatml', [dict(role='tool', content='1'), ANSWER],
     "message 1 of 'messages' in line 1 .* must have a role of system, "
     "developer, user, assistant; got role='tool'. Rename"),
    ('chatml', [{'speaker': 'human', 'text': 'Hi'}],
     r"got keys \['speaker', 'text'\]. Rename the roles and keys."),
    ('chatml', [{'from': 'tool', 'value': '1'}], "got role='tool'. Rename"),
    ('chatml', [USER, dict(ANSWER, tool_calls=[dict(name='f')])],
     "message 2 .* must have no 'tool_calls'; got .* Remove conversations"),
    ('chatml', [USER, dict(ANSWER, content=[dict(type='image')])],
     r"one part of type 'text'; got parts of type \['image'\]"),
    ('chatml', [USER], r"message of the assistant to learn; got the roles "
     r"\['user'\]"),
    ('chatml', 3, "must have a list of messages in 'messages'; got 3"),
    ('chatml', [], r'list of messages .* got \[\]'),
])
def test_messages_that_cannot_be_rendered_are_named(open_chats, case, messages,
                                                    text):
  with pytest.raises(checks.DataError, match=text):
    open_chats(case, dict(messages=messages))


def test_tools_are_refused_by_name(open_chats):
  with pytest.raises(checks.DataError, match="line 1 .* must have no 'tools'; "
                     r"got \[\{'name': 'f'\}\]. Remove"):
    open_chats('chatml', dict(messages=[USER, ANSWER], tools=[dict(name='f')]))
  open_chats('chatml', dict(messages=[USER, ANSWER], tools=[]))


def test_chats_may_be_in_parquet(open_chats, tmp_path):
  rows = [dict(messages=CASES.CASES['chatml'][1], tools=None)]
  open_chats('chatml', *rows)
  (tmp_path / 'files' / 'train.jsonl').unlink()
  path = tmp_path / 'files' / 'train.parquet'
  tokenizer = str(tmp_path / 'chatml')

  def open_parquet():
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return source.open_source(
        'chat', 'train', options=dict(tokenizer=tokenizer, length=256),
        source_dir=str(tmp_path / 'files'), data_dir=str(tmp_path / 'data'))

  assert ids_of(open_parquet()[0]) == GOLDEN['chatml'][0]
  messages = rows[0]['messages']
  for value in (datetime.date(2026, 1, 2), decimal.Decimal('1.5'), b'x'):
    rows[0]['messages'] = [dict(each, at=value) for each in messages]
    with pytest.raises(checks.DataError, match=re.escape(
        f"train.parquet' must have numbers and texts in its fields; got "
        f"{value!r} in 'at'. Write it as text, or remove the field.")):
      open_parquet()
    # What the message recommends.
    rows[0]['messages'] = [dict(each, at=str(value)) for each in messages]
    assert ids_of(open_parquet()[0]) == GOLDEN['chatml'][0]
  rows[0]['tools'] = 'f'
  with pytest.raises(checks.DataError, match="row 0 .* have no 'tools'"):
    open_parquet()


def test_description_matches_the_data(open_chats, tmp_path):
  open_case(open_chats, 'chatml')
  config = config_lib.base()
  config.batch_size = 1
  config.data.name = 'chat'
  config.data.source_dir = str(tmp_path / 'files')
  config.data.data_dir = str(tmp_path / 'data')
  config.data.options = dict(tokenizer=str(tmp_path / 'chatml'), length=256,
                             vocabulary=999)
  described, num_classes, _ = description.describe(config)
  data = pipeline.build_data(config)
  assert described == data.spec and num_classes == data.num_classes == 999


def test_a_part_of_text_is_a_content(open_chats):
  part = dict(ANSWER, content=[dict(type='text', text='Yes')], name=None)
  template = CHATML + '{{ messages[-1].name }}'  # Not 'None'.
  rows = [open_chats('chatml', dict(messages=[USER, message]),
                     chat_template=template)[0] for message in (ANSWER, part)]
  np.testing.assert_array_equal(rows[0]['tokens'], rows[1]['tokens'])


def test_answer_without_a_stop_is_refused_with_its_row(open_chats):
  template = ('{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor'
              ' %}{% if add_generation_prompt %}assistant: {% endif %}')
  # A special token ends an answer only if nothing follows it.
  messages = [USER, dict(ANSWER, content='<|im_end|>' + 'y' * 150)]
  end = r'<\|im_end\|>'
  shown = f'user: Hi\\\\nassistant: «{end}{"y" * 50}…{"y" * 59}\\\\n»'
  with pytest.raises(checks.DataError, match='line 1 .* must have a token that '
                     f'ends each answer, .* in «»: {shown}. Use a chat '
                     'template that writes one'):
    open_chats('chatml', dict(messages=messages), chat_template=template)


def test_stop_that_is_not_the_end_of_texts_is_named(open_chats, caplog):
  with caplog.at_level(logging.INFO, 'haikd'):
    open_case(open_chats, 'gemma2')
    assert ("2 answers end with another token than '<eos>', which whoever "
            'generates has to stop at') in caplog.text
    caplog.clear()
    open_case(open_chats, 'gemma2', eos='<end_of_turn>')
  assert not caplog.text


@pytest.mark.parametrize('template, text', [
    ('{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}'
     '{% endfor %}', 'must render a chat in 1 second; got more for line 1 of'),
    ("{% for a in range(9999) %}{{ 'a' * 999 }}{% endfor %}",
     'must write short texts; got over 4,194,304 characters for line 1'),
    ('{% for', 'must be a template of Jinja2; got unexpected .end of templ'),
    ("{{ ''.__class__.__mro__ }}",
     "must suit the chat template; got the error .access to attribute '__cla"),
    ("{{ 'Yes' if add_generation_prompt else messages }}",
     'must write the same before an answer as when it invites one; got .Yes'),
    ("{% macro f() %}x{% generation %}y{% endgeneration %}{% endmacro %}"
     '{{ f() }}', r'must have {% generation %} at the top level'),
    ('{% if false %}{% generation %}{% endgeneration %}{% endif %}',
     'must have {% generation %} around answers; got none for line 1'),
])
def test_template_that_cannot_be_used_is_refused_soon(open_chats, template,
                                                      text):
  start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
  with pytest.raises(checks.DataError, match=text):
    open_chats('chatml', dict(messages=[USER, ANSWER]), chat_template=template)
  assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start < 3


def test_date_of_a_template_is_named(open_chats, caplog):
  template = "{{ strftime_now('%Y') }}" + CHATML
  with caplog.at_level(logging.INFO, 'haikd'):
    opened = open_chats('chatml', dict(messages=[USER, ANSWER]),
                        chat_template=template)
  assert '1 chats have the day of their preparation in them' in caplog.text
  loaded = tokenizer_lib.load(opened.text.tokenizer)
  assert loaded.decode(ids_of(opened[0])).startswith(time.strftime('%Y'))


# As ShareGPT names messages, in a text, from a European Excel.
SHEET = '\ufeffid;messages\r\n' + (
    '1;"[{""from"": ""human"", ""value"": ""Hi""}, '
    '{""from"": ""gpt"", ""value"": ""Yes""}]"\r\n') * 8


# The data sets as a user starts them, with their options.
@pytest.mark.parametrize('is_recorded', (
    False, pytest.param(True, marks=pytest.mark.slow)))
@pytest.mark.parametrize('name, file, content, more, said', [
    ('chat', 'csv', SHEET,
     dict(chat_template='own',
          template_options=dict(end=dict(token='<end_of_turn>'))),
     "8 answers end with another token than '<eos>'"),
    ('completions', 'jsonl',
     '{"prompt": "<bos>Hi", "completion": " Yes"}\n' * 8,
     dict(eos='<end_of_turn>', pad='<eos>', bos='<bos>'),
     "8 texts hold special tokens that texts get ('<bos>', '<end_of_turn>')"),
])
def test_data_set_from_the_command_line(
    run, tmp_path, write_language_model, name, file, content, more, said,
    is_recorded):
  CASES.write_tokenizer('gemma2', tmp_path / 'tokenizer')
  templates = tmp_path / 'tokenizer' / 'additional_chat_templates'
  templates.mkdir()
  (templates / 'own.jinja').write_text(
      CHATML.replace("'<|im_end|>'", 'end.token'))
  for split in ('train', 'validation', 'test'):
    (tmp_path / f'{split}.{file}').write_bytes(content.encode())
  write_language_model(
      'chats.py', name=name, source_dir=str(tmp_path),
      data_dir=str(tmp_path / 'data'),
      options=dict(tokenizer=str(tmp_path / 'tokenizer'), length=48, **more))
  code, out, err = run(config='chats.py')
  assert code == 0, err
  assert 'perplexity' in out
  assert err.count(f"haikd: split 'train', of 8 records: {said}") == 1
  assert err.count("train.csv': columns are separated by ';'") == (
      name == 'chat')
  if is_recorded:
    # Hidden states, whose logits are the teacher's within 8 bits.
    records = ('--config.teacher.records='
               f'{{"path": "{tmp_path}/records", "kind": "hidden"}}')
    code, out, err = run('--mode=teach', records, config='chats.py')
    assert code == 0 and 'recorded 8 rows of' in out, err
    code, _, err = run(records, config='chats.py', workdir='again')
    assert code == 0 and 'the teacher does not run' in err, err
    live, recorded = (
        json.loads((tmp_path / workdir / 'metrics.jsonl').read_text()
                   .splitlines()[0]) for workdir in ('run', 'again'))
    assert recorded['loss/kl_divergence'] == pytest.approx(
        live['loss/kl_divergence'], rel=0.02)
