"""What is pretrained, and what is refused by name."""

import json

import pytest

from haikd import checks
from haikd import interop
from haikd.interop import source


def test_folder_is_described(toy):
  assert interop.describe(toy.init) == interop.Pretrained(
      'toy', toy.options, toy.vocabulary, None)


@pytest.mark.parametrize('name', ('tokenizer.json', 'vocab.txt'))
def test_tokenizer_is_the_folder_that_has_one(toy, name):
  (toy.folder / name).write_text('{}')
  assert interop.describe(toy.init).tokenizer == str(toy.folder)


@pytest.mark.parametrize('init, is_it', (
    ('hf:x', True), ('gguf:x', True), ('runs/hf', False), (None, False)))
def test_init_says_whether_it_is_of_others(init, is_it):
  assert interop.is_pretrained(init) is is_it


@pytest.mark.parametrize('init, kind, match', (
    ('runs/x', checks.ConfigError, 'hf:<folder> or gguf:<file>'),
    ('hf:gs://a/b', checks.ConfigError, 'must be local'),
    ('hf:/nowhere', checks.DataError, 'must name a folder; got /nowhere'),
    ('gguf:/nowhere', checks.DataError, 'must name a file; got /nowhere'),
))
def test_what_is_not_there_is_refused(init, kind, match):
  with pytest.raises(kind, match=match):
    interop.describe(init)


def test_unknown_model_type_is_named_with_those_there_are(toy):
  config = dict(model_type='tory')
  (toy.folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises(checks.DataError,
                     match="got 'tory'. Did you mean 'toy'. Known: toy"):
    interop.describe(toy.init)


@pytest.mark.parametrize('content', ('', '[]', '{"model_type": 3}'))
def test_config_that_is_none_is_refused(toy, content):
  (toy.folder / 'config.json').write_text(content)
  with pytest.raises(checks.DataError, match='config.json|got 3'):
    interop.describe(toy.init)


def test_unknown_field_is_refused_by_name(toy):
  toy.write(toy.tensors, alibi=True, cached=0, use_cache=True)
  with pytest.raises(checks.DataError, match="got {'alibi': True}"):
    interop.describe(toy.init)


def test_model_that_no_one_else_has_is_refused(toy):
  with pytest.raises(checks.ConfigError, match="model='toi'. Did you mean 't"):
    source.family_of('toi')
