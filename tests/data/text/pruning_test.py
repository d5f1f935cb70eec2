"""Smaller vocabularies: the same pieces for a corpus, and the kept tokens."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers

from haikd.core import checks
from haikd.data.text import pruning
from haikd.data.text import tokenizer as tokenizer_lib

TRAINING = [
    'the cat sat on the mat and the other cat did not sit there at all',
    'a theory of the weather: whether it rains, or it does not!',
    "it's 1234 o'clock; the café is open until late (23:59)",
    'lower lowest newer newest wider widest slow slower slowest',
]
CORPUS = ['the cat is not there', 'newest weather, 12', 'slow café']
OTHERS = ['zebra crossing', 'WIDER! 987', 'été 日本', ' the  lowest\n\t']


def wrapped(made, **config):
  return tokenizer_lib.Tokenizer(json.loads(made.to_str()), config)


def byte_level():
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.train_from_iterator(TRAINING, trainers.BpeTrainer(
      vocab_size=400, special_tokens=['<s>', '</s>'], show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  made.post_processor = processors.TemplateProcessing(
      single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)])
  made.add_tokens(['<tool>'])
  made.add_special_tokens(['<last>'])
  return wrapped(made)


def byte_fallback():
  """Like Llama 2: characters, and bytes for unknown characters."""
  made = tokenizers.Tokenizer(models.BPE(
      unk_token='<unk>', byte_fallback=True, fuse_unk=True))
  made.normalizer = normalizers.Replace(' ', '▁')
  made.decoder = decoders.Sequence([
      decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()])
  made.train_from_iterator(TRAINING, trainers.BpeTrainer(
      vocab_size=400, show_progress=False,
      special_tokens=['<unk>', *(f'<0x{i:02X}>' for i in range(256))]))
  definition = json.loads(made.to_str())
  definition['added_tokens'] = definition['added_tokens'][:1]
  return tokenizer_lib.Tokenizer(definition)


def suffixed():
  """Like CLIP: the last piece of a word includes the end of the word."""
  made = tokenizers.Tokenizer(models.BPE(
      unk_token='<unk>', end_of_word_suffix='</w>'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.train_from_iterator(TRAINING, trainers.BpeTrainer(
      vocab_size=150, end_of_word_suffix='</w>', show_progress=False,
      special_tokens=['<unk>']))
  return wrapped(made)


def word_piece():
  made = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
  made.normalizer = normalizers.BertNormalizer()
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  made.train_from_iterator(TRAINING, trainers.WordPieceTrainer(
      vocab_size=150, special_tokens=special, show_progress=False))
  made.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
  return wrapped(made)


def unigram():
  made = tokenizers.Tokenizer(models.Unigram())
  made.pre_tokenizer = pre_tokenizers.Metaspace()
  made.decoder = decoders.Metaspace()
  made.train_from_iterator(TRAINING, trainers.UnigramTrainer(
      vocab_size=90, special_tokens=['<pad>', '<unk>', '</s>'],
      unk_token='<unk>', show_progress=False))
  made.post_processor = processors.Sequence([processors.TemplateProcessing(
      single='$A </s>', special_tokens=[('</s>', 2)])])
  return wrapped(made)


ALL = [byte_level, byte_fallback, suffixed, word_piece, unigram]


def pruned_for(original, texts):
  used = {int(i) for e in original.encode_batch(texts) for i in e.ids}
  return pruning.prune(original, used)


@pytest.mark.parametrize('make', ALL)
def test_texts_of_the_corpus_have_the_same_pieces(make):
  original = make()
  for texts in (CORPUS, TRAINING[:2], ['日本 cat'], OTHERS):
    pruned, kept_ids = pruned_for(original, texts)
    assert len(kept_ids) == pruned.size < original.size
    for before, after in zip(original.encode_batch(texts),
                             pruned.encode_batch(texts)):
      assert before.ids.tolist() == kept_ids[after.ids].tolist()


@pytest.mark.parametrize('make', ALL)
def test_ids_are_dense_and_in_the_old_order(make):
  original = make()
  pruned, kept_ids = pruned_for(original, CORPUS)
  assert kept_ids.dtype == np.int32 and (np.diff(kept_ids) > 0).all()
  for new, old in enumerate(kept_ids):
    assert pruned.token_of(new) == original.token_of(old)
    assert pruned.id_of(original.token_of(old)) == new


@pytest.mark.parametrize('make', ALL)
def test_special_tokens_are_kept(make):
  original = make()
  pruned, _ = pruning.prune(original, [])
  for token in original.definition['added_tokens']:
    assert (pruned.id_of(token['content']) is not None) == token['special']
  for before, after in zip(original.special, pruned.special):
    assert (before is None) == (after is None)
    if before is not None:
      assert original.token_of(before) == pruned.token_of(after)


@pytest.mark.parametrize('make', [byte_level, byte_fallback])
def test_any_other_text_is_still_decoded_to_itself(make):
  pruned, _ = pruned_for(make(), CORPUS)
  for text in OTHERS + TRAINING:
    ids = pruned.encode_batch([text], special=False)[0].ids
    assert pruned.decode(ids) == text


@pytest.mark.parametrize('make', [suffixed, word_piece, unigram])
def test_other_words_of_known_letters_are_not_unknown(make):
  pruned, _ = pruned_for(make(), CORPUS)
  ids = pruned.encode_batch(['wider slowest theory'])[0].ids
  assert pruned.special.unk is None or pruned.special.unk not in ids


def test_parts_of_all_merges_to_a_piece_are_kept():
  # abc is merged from ab + c, which has the lower rank, and from a + bc. d is
  # kept because it is a single character, cd and da are not.
  vocab = {token: i for i, token in enumerate(
      ['a', 'b', 'c', 'd', 'cd', 'ab', 'bc', 'abc', 'da'])}
  original = wrapped(tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[
      ('c', 'd'), ('a', 'b'), ('b', 'c'), ('ab', 'c'), ('a', 'bc'),
      ('d', 'a')])))
  pruned, kept_ids = pruning.prune(original, [vocab['abc']])
  assert kept_ids.tolist() == [0, 1, 2, 3, 5, 6, 7]
  assert pruned.definition['model']['merges'] == [
      ['a', 'b'], ['b', 'c'], ['ab', 'c'], ['a', 'bc']]


def test_merges_may_be_written_as_strings():
  original = byte_level()
  definition = json.loads(json.dumps(original.definition))
  definition['model']['merges'] = [
      ' '.join(merge) for merge in definition['model']['merges']]
  old = tokenizer_lib.Tokenizer(definition)
  assert (pruned_for(old, CORPUS)[0].definition ==
          pruned_for(original, CORPUS)[0].definition)


@pytest.mark.parametrize('make', ALL)
@pytest.mark.parametrize('missing', [
    ('post_processor',), ('added_tokens',), ('model', 'type'),
    ('model', 'unk_id'), ('model', 'unk_token')])
def test_optional_fields_of_a_file_may_be_missing(make, missing):
  definition = json.loads(json.dumps(make().definition))
  inner = definition
  for key in missing[:-1]:
    inner = inner[key]
  inner.pop(missing[-1], None)
  try:
    original = tokenizer_lib.Tokenizer(definition)
  except checks.DataError:
    return  # The package requires it.
  pruned, kept_ids = pruned_for(original, CORPUS)
  assert pruned.size < original.size
  for before, after in zip(original.encode_batch(CORPUS),
                           pruned.encode_batch(CORPUS)):
    assert before.ids.tolist() == kept_ids[after.ids].tolist()


def test_used_added_tokens_are_kept_and_renumbered():
  original = byte_level()
  pruned, kept_ids = pruned_for(original, ['cat <tool>'])
  assert pruned.id_of('<tool>') == len(kept_ids) - 2
  assert pruned.id_of('<last>') == len(kept_ids) - 1


SINGLE = dict(single='[CLS] $A [SEP]',
              special_tokens=[('[CLS]', 2), ('[SEP]', 4)])


@pytest.mark.parametrize('processor', [
    processors.TemplateProcessing(**SINGLE),
    processors.BertProcessing(('[SEP]', 4), ('[CLS]', 2)),
    processors.RobertaProcessing(('[SEP]', 4), ('[CLS]', 2)),
    processors.Sequence([processors.ByteLevel(),
                         processors.TemplateProcessing(**SINGLE)]),
])
def test_special_tokens_are_added_with_their_new_ids(processor):
  words = ['a', '[UNK]', '[CLS]', 'b', '[SEP]', 'c']
  made = tokenizers.Tokenizer(models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token='[UNK]'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.post_processor = processor
  made.add_special_tokens(['[UNK]', '[CLS]', '[SEP]'])
  pruned, kept_ids = pruning.prune(wrapped(made), [5])
  assert kept_ids.tolist() == [1, 2, 4, 5]
  assert pruned.encode_batch(['c a'])[0].ids.tolist() == [1, 3, 0, 2]
  assert [(t['id'], t['content'])
          for t in pruned.definition['added_tokens']] == [
              (0, '[UNK]'), (1, '[CLS]'), (2, '[SEP]')]


def test_tokens_that_only_processors_add_are_kept():
  made = tokenizers.Tokenizer(models.WordLevel(
      {'a': 0, 'b': 1, 'end': 2}, unk_token='a'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.post_processor = processors.TemplateProcessing(
      single='$A end', special_tokens=[('end', 2)])
  pruned, kept_ids = pruning.prune(wrapped(made), [])
  assert kept_ids.tolist() == [0, 2]
  assert pruned.encode_batch(['a'])[0].ids.tolist() == [0, 1]


def test_the_score_of_unk_does_not_change():
  # The score of unk is the lowest score of a piece less 10: without the worst
  # piece, b (-3) + c (-9) would lose to unk (-11) + c.
  original = wrapped(tokenizers.Tokenizer(models.Unigram(
      [('<unk>', 0.0), ('ab', -1.0), ('c', -9.0), ('xyz', -50.0)], unk_id=0)))
  pruned, kept_ids = pruning.prune(original, [1, 2])
  assert kept_ids.tolist() == [0, 1, 2, 3]
  assert pruned.definition['model']['unk_id'] == 0


def test_chat_template_is_kept():
  original = tokenizer_lib.Tokenizer(byte_level().definition,
                                     templates=dict(a='{{ a }}'))
  assert pruned_for(original, CORPUS)[0].templates == dict(a='{{ a }}')


def test_config_is_renumbered():
  original = byte_level()
  last = original.id_of('<last>')
  tool = original.id_of('<tool>')
  config = dict(added_tokens_decoder={
      '0': dict(content='<s>'), str(tool): dict(content='x'),
      str(last): dict(content='<last>')})
  original = tokenizer_lib.Tokenizer(original.definition, config)
  pruned, kept_ids = pruned_for(original, CORPUS)
  assert pruned.config == dict(added_tokens_decoder={
      '0': dict(content='<s>'),
      str(len(kept_ids) - 1): dict(content='<last>')})


@pytest.mark.parametrize('make', ALL)
def test_pruned_tokenizers_can_be_saved_and_loaded(make, tmp_path):
  pruned, _ = pruned_for(make(), CORPUS)
  pruned.save(tmp_path)
  again = tokenizer_lib.load(str(tmp_path))
  assert again.digest == pruned.digest
  plain = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  for text in CORPUS:
    assert plain.encode(text).ids == pruned.encode_batch([text])[0].ids.tolist()


def test_ids_of_another_tokenizer_are_refused():
  with pytest.raises(checks.DataError, match=(
      'used_ids must be ids of the tokenizer; got 400, size=400')):
    pruning.prune(wrapped(tokenizers.Tokenizer(models.WordLevel(
        {str(i): i for i in range(400)}, unk_token='0'))), [3, 400])
