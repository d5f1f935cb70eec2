"""Which tokenizers are one."""

import copy
import json

import pytest
import tokenizers
from tokenizers import models

from haikd.data.text import shared_ids
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib

# Byte-level BPE of a few letters; 'ab' and 'abc' are merged.
ALPHABET = ['a', 'b', 'c', 'd', 'Ġ']
DEFINITION = dict(
    version='1.0', truncation=None, padding=None,
    added_tokens=[dict(id=7, content='<end>', special=True, normalized=False,
                       lstrip=False, rstrip=False, single_word=False)],
    normalizer=dict(type='NFC'),
    pre_tokenizer=dict(type='ByteLevel', add_prefix_space=False,
                       trim_offsets=True, use_regex=True),
    post_processor=None,
    decoder=dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True,
                 use_regex=True),
    model=dict(
        type='BPE', dropout=None, unk_token=None,
        continuing_subword_prefix=None, end_of_word_suffix=None,
        fuse_unk=False, byte_fallback=False, ignore_merges=False,
        vocab={token: i for i, token in enumerate([*ALPHABET, 'ab', 'abc'])},
        merges=[['a', 'b'], ['ab', 'c']]))
GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
        r'|\s+(?!\S)|\s+')


def edited(edit):
  definition = copy.deepcopy(DEFINITION)
  edit(definition)
  return tokenizer_lib.Tokenizer(definition)


def put(*path, value):
  def edit(definition):
    for name in path[:-1]:
      definition = definition[name]
    definition[path[-1]] = value
  return edit


def add_tokens(definition):
  definition['added_tokens'] += [
      dict(DEFINITION['added_tokens'][0], id=i, content=f'<{i}>')
      for i in (8, 9)]


def add_merge(definition):
  definition['model']['vocab'] |= {'<end>': 7, 'bc': 8}
  definition['model']['merges'] = [['b', 'c'], ['a', 'b'], ['ab', 'c']]


SAME = dict(
    nothing=lambda definition: None,
    merges_as_strings=put('model', 'merges', value=['a b', 'ab c']),
    defaults_left_out=lambda definition: [
        definition['model'].pop(name)
        for name in ('dropout', 'ignore_merges', 'byte_fallback')],
    order_of_vocabulary=lambda definition: definition['model'].update(
        vocab=dict(reversed(definition['model']['vocab'].items()))),
    added_token_in_the_vocabulary=lambda definition: (
        definition['model']['vocab'].update({'<end>': 7})),
    special=put('added_tokens', 0, 'special', value=False),
    offsets=put('pre_tokenizer', 'trim_offsets', value=False),
    sequence_of_one=put('normalizer', value=dict(
        type='Sequence', normalizers=[dict(type='NFC')])),
    regex_apart=put('pre_tokenizer', value=dict(
        type='Sequence', pretokenizers=[
            dict(type='Split', pattern=dict(Regex=GPT2), behavior='Isolated',
                 invert=False),
            dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True,
                 use_regex=False)])),
    decoder=put('decoder', value=None),
    template=put('post_processor', value=dict(
        type='TemplateProcessing',
        single=[dict(SpecialToken=dict(id='<end>', type_id=0)),
                dict(Sequence=dict(id='A', type_id=0))],
        pair=[dict(Sequence=dict(id='A', type_id=0)),
              dict(Sequence=dict(id='B', type_id=1))],
        special_tokens={'<end>': dict(id='<end>', ids=[7], tokens=['<end>'])})),
    truncation=put('truncation', value=dict(
        direction='Right', max_length=3, strategy='LongestFirst', stride=0)))

OTHER = dict(
    other_token=(lambda definition: definition['model'].update(
        vocab={**definition['model']['vocab'], 'd': 8, 'e': 3}),
        r"id 3 is 'd' and 'e'"),
    swapped=(lambda definition: definition['model'].update(
        vocab={**definition['model']['vocab'], 'ab': 6, 'abc': 5}),
        "id 5 is 'ab' and 'abc', id 6 is 'abc' and 'ab'"),
    merges=(put('model', 'merges', value=[['a', 'b']]), 'merges'),
    normalizer=(put('normalizer', value=None), 'normalizer'),
    prefix_space=(put('pre_tokenizer', 'add_prefix_space', value=True),
                  'pre_tokenizer'),
    ignore_merges=(put('model', 'ignore_merges', value=True), 'model'),
    stripping=(put('added_tokens', 0, 'lstrip', value=True), 'added_tokens'),
    added=(lambda definition: (
        definition['model']['vocab'].update({'<end>': 7}),
        definition.update(added_tokens=[])), 'added_tokens'))


@pytest.mark.parametrize('name', SAME)
def test_files_that_are_spelt_differently_are_one(name):
  ours, theirs = edited(SAME['nothing']), edited(SAME[name])
  assert shared_ids.count(ours, theirs) == shared_ids.count(theirs, ours) == 8


@pytest.mark.parametrize('name', OTHER)
def test_tokenizers_whose_ids_differ_are_refused(name):
  edit, what = OTHER[name]
  with pytest.raises(ValueError, match=what):
    shared_ids.count(edited(SAME['nothing']), edited(edit))


@pytest.mark.parametrize('name', ['regex_apart', 'normalizer'])
def test_two_tokenizers_are_compared_once(name, monkeypatch):
  # Digests that no other test has seen.
  ours, theirs = (edited(lambda definition: (
      edit(definition), definition['added_tokens'].append(
          dict(DEFINITION['added_tokens'][0], id=8, content=f'<{name}>'))))
                  for edit in (SAME['nothing'], SAME.get(name) or
                               OTHER[name][0]))
  compared = []
  canonical = tokenizer_lib.Tokenizer.canonical
  monkeypatch.setattr(
      tokenizer_lib.Tokenizer, 'canonical',
      lambda self: compared.append(self) or canonical(self))
  for _ in range(3):
    if name in SAME:
      assert shared_ids.count(ours, theirs) == 9
    else:
      with pytest.raises(ValueError, match='normalizer'):
        shared_ids.count(ours, theirs)
  assert compared == [ours, theirs]


def test_tokenizers_of_teacher_student_and_data_stay_loaded(tmp_path):
  paths = [tmp_path / f'{i}.json' for i in range(3)]
  for path in paths:
    path.write_text(json.dumps(DEFINITION))
  first, second = ([text_tokenizers.load(str(path)) for path in paths]
                   for _ in range(2))
  assert list(map(id, first)) == list(map(id, second))


@pytest.mark.parametrize('more', [add_tokens, add_merge])
def test_one_with_more_tokens_is_one_over_the_shared_ids(more):
  small, large = edited(SAME['nothing']), edited(more)
  assert large.size > 8
  assert shared_ids.count(small, large) == shared_ids.count(large, small) == 8
  # The smaller one gives the same ids as before it was extended.
  assert small.encode_batch(['abcd'])[0].ids.tolist() == [6, 3]


def test_scores_of_unigram_pieces_count():

  def unigram(scores):
    made = tokenizers.Tokenizer(models.Unigram(
        [('<unk>', 0.0), *zip('ab', scores)], unk_id=0))
    return tokenizer_lib.Tokenizer(json.loads(made.to_str()))

  assert shared_ids.count(unigram([-1.0, -2.0]), unigram([-1.0, -2.0])) == 3
  with pytest.raises(ValueError, match='scores'):
    shared_ids.count(unigram([-1.0, -2.0]), unigram([-1.0, -3.0]))
