"""Tokenizers from folders: special tokens, ignored settings, refusals."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from haikd.core import checks
from haikd.data.text import special_tokens
from haikd.data.text import tokenizer

WORDS = {'[PAD]': 0, '[UNK]': 1, '[CLS]': 2, '[SEP]': 3, 'a': 4, 'b': 5}


@pytest.fixture
def folder(tmp_path):
  """A tokenizer of words whose file has truncation and padding."""
  made = tokenizers.Tokenizer(models.WordLevel(WORDS, unk_token='[UNK]'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(list(WORDS)[:4])
  made.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1',
      special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
  made.enable_truncation(4)
  made.enable_padding(length=9)
  made.save(str(tmp_path / 'tokenizer.json'))
  return tmp_path


def test_truncation_and_padding_of_the_file_are_ignored(folder):
  encoded, = tokenizer.load(str(folder)).encode_batch(['a b a b a b'])
  assert encoded.ids.tolist() == [2, 4, 5, 4, 5, 4, 5, 3]
  assert encoded.ids.dtype == np.int32


def test_pair_is_one_sequence_with_types(folder):
  encoded, = tokenizer.load(str(folder)).encode_batch(['a b'], ['c'])
  assert encoded.ids.tolist() == [2, 4, 5, 3, 1, 3]
  assert encoded.types.tolist() == [0, 0, 0, 0, 1, 1]


def test_length_truncates_a_text_and_keeps_special_tokens(folder):
  loaded = tokenizer.load(str(folder))
  assert loaded.encode_batch(['a b a b'], length=3)[0].ids.tolist() == [2, 4, 3]
  assert len(loaded.encode_batch(['a b a b'])[0].ids) == 6  # Not the next text.


def test_special_tokens_may_be_left_out(folder):
  encoded, = tokenizer.load(str(folder)).encode_batch(['a b'], special=False)
  assert encoded.ids.tolist() == [4, 5]


def test_a_file_is_loaded_like_its_folder(folder):
  loaded = tokenizer.load(str(folder / 'tokenizer.json'))
  assert loaded.size == 6
  assert loaded.special == special_tokens.Special(pad=0, unk=1, cls=2, sep=3)


@pytest.mark.parametrize('name, content', [
    ('tokenizer_config.json', dict(eos_token='b', bos_token=dict(content='a'))),
    ('special_tokens_map.json', dict(eos_token='b', bos_token='a')),
])
def test_files_say_which_tokens_are_special(folder, name, content):
  (folder / name).write_text(json.dumps(content | dict(pad_token=None)))
  special = tokenizer.load(str(folder)).special
  assert special == special_tokens.Special(bos=4, eos=5, unk=1, cls=2, sep=3)


def test_decoding_may_leave_special_tokens_out(folder):
  loaded = tokenizer.load(str(folder))
  assert loaded.decode([2, 4, 5, 3]) == '[CLS] a b [SEP]'
  assert loaded.decode([2, 4, 5, 3], skip_special=True) == 'a b'


def test_a_saved_tokenizer_is_loaded_again(folder, tmp_path):
  (folder / 'tokenizer_config.json').write_text(
      '{"eos_token": "b", "model_max_length": 512}')
  loaded = tokenizer.load(str(folder))
  loaded.save(tmp_path / 'new' / 'copy')
  again = tokenizer.load(str(tmp_path / 'new' / 'copy'))
  assert again.digest == loaded.digest and again.special == loaded.special
  assert again.config['model_max_length'] == 512
  # The package itself reads the file, without truncation and padding.
  plain = tokenizers.Tokenizer.from_file(
      str(tmp_path / 'new' / 'copy' / 'tokenizer.json'))
  assert plain.encode('a b a b').ids == [2, 4, 5, 4, 5, 3]
  assert plain.encode('a').ids == [2, 4, 3]


def test_chat_template_must_be_text(folder):
  (folder / 'chat_template.jinja').write_bytes(b'caf\xe9')
  with pytest.raises(checks.DataError, match='chat_template.jinja.*be UTF-8'):
    tokenizer.load(str(folder))


@pytest.mark.parametrize('change', [
    lambda d: d['model']['vocab'].update(c=6),
    lambda d: d.update(post_processor=None),
    lambda d: d.update(normalizer=dict(type='Lowercase')),
])
def test_digest_distinguishes_tokenizers(folder, change):
  before = tokenizer.load(str(folder)).digest
  definition = json.loads((folder / 'tokenizer.json').read_text())
  change(definition)
  (folder / 'tokenizer.json').write_text(json.dumps(definition))
  assert tokenizer.load(str(folder)).digest != before


def test_digest_does_not_depend_on_the_folder_or_on_padding(folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'copy')
  definition = json.loads((folder / 'tokenizer.json').read_text())
  (folder / 'tokenizer.json').write_text(json.dumps(definition | dict(
      padding=None)))
  assert (tokenizer.load(str(folder)).digest ==
          tokenizer.load(str(tmp_path / 'copy')).digest)


@pytest.mark.parametrize('files, text', [
    (['vocab.txt'], 'has only vocab.txt. Convert it .*AutoTokenizer'),
    (['spiece.model'], 'has only spiece.model. Convert it'),
    (['config.json'], 'has no tokenizer.json. Fetch it'),
    ([], 'is missing or empty. Correct config.data.options.tokenizer'),
])
def test_folder_without_the_file_gets_a_remedy(tmp_path, files, text):
  for name in files:
    (tmp_path / name).touch()
  with pytest.raises(checks.DataError,
                     match='A tokenizer must be a folder with tokenizer.json, '
                     f'or that file; got .*, which {text}'):
    tokenizer.load(str(tmp_path))


@pytest.mark.parametrize('content, text', [
    ('{"model": ', 'must hold JSON'),
    ('[]', 'must hold a JSON object; got list'),
    ('{"model": {"type": "None such"}}',
     'must hold a tokenizer that the package tokenizers reads'),
])
def test_file_without_a_tokenizer_is_refused(tmp_path, content, text):
  (tmp_path / 'tokenizer.json').write_text(content)
  with pytest.raises(checks.DataError, match=text):
    tokenizer.load(str(tmp_path))
