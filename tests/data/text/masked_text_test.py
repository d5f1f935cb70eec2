"""Masked words: which are chosen, what they become, and when they change."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from haikd import config as config_lib
from haikd.core import checks
from haikd.data import description
from haikd.data import pipeline
from haikd.data import reader as reader_lib
from haikd.data import source
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import words as words_lib

SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
MASK = 5
# Ids: a 6, b 7, c 8, ##a 9, ##b 10, ##c 11, the comma 12. No text has zz.
PIECES = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'zz', '[MASK]', 'a', 'b', 'c',
          '##a', '##b', '##c', ',']


def save(made, folder, special=SPECIAL, **config):
  folder.mkdir()
  made.add_special_tokens(special)
  made.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return str(folder)


@pytest.fixture
def word_piece(tmp_path):
  made = tokenizers.Tokenizer(models.WordPiece(
      {piece: i for i, piece in enumerate(PIECES)}, unk_token='[UNK]'))
  made.normalizer = normalizers.BertNormalizer()
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
  return save(made, tmp_path / 'word_piece')


def write(folder, texts, name='train'):
  (folder / 'files').mkdir(exist_ok=True)
  (folder / 'files' / f'{name}.jsonl').write_text(
      ''.join(json.dumps(dict(text=text)) + '\n' for text in texts))


def make_config(folder, tokenizer, *, batch_size=4, seed=0, **options):
  config = config_lib.base()
  config.batch_size, config.seed = batch_size, seed
  config.data.name = 'masked_text'
  config.data.source_dir = str(folder / 'files')
  config.data.data_dir = str(folder / 'data')
  config.data.options = dict(tokenizer=tokenizer, length=8) | options
  return config


def open_split(folder, tokenizer, split='train', **options):
  return source.open_source(
      'masked_text', split, source_dir=str(folder / 'files'),
      data_dir=str(folder / 'data'),
      options=dict(tokenizer=tokenizer, length=8) | options)


@pytest.mark.parametrize('padding', ['right', 'left'])
def test_a_row_is_one_document_and_long_ones_are_cut_between_words(
    tmp_path, word_piece, padding):
  # Six tokens fit between [CLS] and [SEP]: the second document is cut before
  # `aaa`, and the third one, a word of seven pieces, within the word.
  write(tmp_path, ['ab, c', 'a b c a aaa b', '', 'abcabca', ' \n'])
  opened = open_split(tmp_path, word_piece, padding=padding)
  tokens = [[2, 6, 10, 12, 8, 3], [2, 6, 7, 8, 6, 3], [2, 6, 9, 9, 7, 3],
            [2, 6, 10, 11, 9, 10, 11, 3], [2, 9, 3]]
  words = [[0, 1, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0], [0, 1, 1, 1, 2, 0],
           [0, 1, 1, 1, 1, 1, 1, 0], [0, 1, 0]]
  assert len(opened) == 5
  for i, row in enumerate(opened[i] for i in range(5)):
    room = [8 - len(tokens[i]), 0] if padding == 'left' else [
        0, 8 - len(tokens[i])]
    assert row['tokens'].tolist() == np.pad(tokens[i], room).tolist()
    assert row['words'].tolist() == np.pad(
        words[i], room, constant_values=-1).tolist()
    np.testing.assert_array_equal(row['mask'], row['words'] >= 0)
  assert opened.info['tokens'] == sum(map(len, tokens))


def test_special_tokens_within_a_text_are_no_words(tmp_path, word_piece):
  write(tmp_path, ['a [MASK] b x'])  # x is unknown.
  row = open_split(tmp_path, word_piece)[0]
  assert row['tokens'].tolist() == [2, 6, 5, 7, 1, 3, 0, 0]
  assert row['words'].tolist() == [0, 1, 0, 3, 0, 0, -1, -1]


def test_a_pruned_vocabulary_masks_with_its_own_ids(tmp_path, word_piece):
  write(tmp_path, ['ab a ab'] * 8)
  config = make_config(tmp_path, word_piece, prune=True, rate=0.9)
  data = pipeline.build_data(config)
  assert data.text_of('student').kept_ids.tolist() == [
      i for i in range(13) if i != PIECES.index('zz')]
  batch = next(data.train())
  chosen = batch.inputs[batch.target_mask]
  assert (chosen == MASK - 1).mean() > 0.5 and chosen.max() < 12


def epochs(config, count, size):
  """Returns `count` epochs of `size` examples, stacked in their order."""
  stream = pipeline.build_data(config).train()
  batches = [next(stream) for _ in range(count * size // config.batch_size)]
  return [np.concatenate([getattr(b, name) for b in batches])
          for name in ('inputs', 'labels', 'target_mask', 'mask')]


def test_choices_have_the_frequencies_of_bert(tmp_path, word_piece):
  """Counts lie within 4 standard deviations of a binomial's mean."""
  rng = np.random.RandomState(0)
  texts = [' '.join(''.join(rng.choice(list('abc'), rng.randint(1, 4)))
                    for _ in range(12)) for _ in range(200)]
  write(tmp_path, texts)
  config = make_config(tmp_path, word_piece, batch_size=100, length=64)
  size = len(open_split(tmp_path, word_piece, length=64))
  assert size == 200
  inputs, labels, chosen, mask = epochs(config, 50, size)
  original = np.where(chosen, labels, inputs)
  continues = np.isin(original, (9, 10, 11))  # Pieces with ##.
  begins = (original > MASK) & ~continues

  def check(hits, trials, probability):
    deviation = np.sqrt(trials * probability * (1 - probability))
    assert abs(hits - trials * probability) < 4 * deviation

  assert not chosen[original < MASK].any() and not chosen[~mask].any()
  # No word is chosen in part: a piece is chosen if the one it continues is.
  np.testing.assert_array_equal(chosen[continues],
                                np.roll(chosen, 1, axis=1)[continues])
  check(chosen[begins].sum(), begins.sum(), 0.15)
  # Long words are chosen as often as short ones.
  long = begins & np.roll(continues, -1, axis=1) & np.roll(
      continues, -2, axis=1)
  check(chosen[long].sum(), long.sum(), 0.15)
  # A random token is [MASK], or the token itself, once in 13 draws each.
  count = chosen.sum()
  random = 0.1 / len(PIECES)
  masked, kept = inputs == MASK, inputs == labels
  check((chosen & masked).sum(), count, 0.8 + random)
  check((chosen & kept).sum(), count, 0.1 + random)
  replaced = inputs[chosen & ~masked & ~kept]
  for token in range(len(PIECES)):
    if token != MASK:
      trials = (chosen & (labels != token)).sum()
      check((replaced == token).sum(), trials, random)
  # Tokens of one word are hidden independently of each other.
  after = continues & chosen & np.roll(chosen & masked, 1, axis=1)
  check((after & masked).sum(), after.sum(), 0.8 + random)
  np.testing.assert_array_equal(labels == -100, ~chosen)
  np.testing.assert_array_equal(inputs[~chosen], original[~chosen])


def test_each_epoch_and_seed_chooses_anew(tmp_path, word_piece):
  write(tmp_path, ['a b c ' * 10])  # One example: an epoch is a batch.
  choices = set()
  for seed in (0, 1):
    config = make_config(tmp_path, word_piece, batch_size=1, seed=seed,
                         length=32, rate=0.5)
    choices |= {row.tobytes() for row in epochs(config, 6, 1)[2]}
  assert len(choices) == 12


@pytest.mark.parametrize('batch_size, processes, shards', [
    (6, 1, 1), (4, 2, 4), (3, 3, 3)])
def test_masks_do_not_depend_on_how_rows_are_read(
    tmp_path, word_piece, monkeypatch, batch_size, processes, shards):
  texts = ['a b c', 'abc abc', 'c b a', 'a, b', 'cab cab', 'b b b', 'a a']
  for name in ('train', 'test'):
    write(tmp_path, texts, name)
  config = make_config(tmp_path, word_piece, batch_size=4, rate=0.5)
  expected = epochs(config, 12, 7)  # 21 batches of 4.
  config.batch_size = batch_size
  config.data.prefetch = 3
  if batch_size == 3:  # The split is not kept in memory.
    monkeypatch.setattr(reader_lib, 'CACHE_BYTES', 0)
  shares = [pipeline.build_data(config, process_index=index,
                                process_count=processes).train()
            for index in range(processes)]
  batches = [next(share) for _ in range(84 // batch_size) for share in shares]
  for name, column in zip(('inputs', 'labels', 'target_mask'), expected):
    np.testing.assert_array_equal(
        np.concatenate([getattr(b, name) for b in batches]), column)
  # The test split is masked in the same way for every batch and seed.
  evaluated = []
  for seed, size, split_over in ((0, 512, 1), (3, 2, shards)):
    config.seed, config.evaluation.batch_size = seed, size
    data = pipeline.build_data(config, shards=split_over)
    for _ in range(2):
      batches = list(data.evaluation('test'))
      kept = np.concatenate([b.mask.any(-1) for b in batches])
      evaluated.append([
          np.concatenate([getattr(b, name) for b in batches])[kept]
          for name in ('inputs', 'labels', 'target_mask')])
  assert evaluated[0][2].any()
  for others in evaluated[1:]:
    for column, other in zip(evaluated[0], others):
      np.testing.assert_array_equal(other, column)


def test_a_stream_goes_on_with_the_masks_it_would_have_had(
    tmp_path, word_piece):
  write(tmp_path, ['a b c a b'] * 6)
  config = make_config(tmp_path, word_piece, rate=0.5)
  undisturbed = pipeline.build_data(config).train()
  batches = [next(undisturbed) for _ in range(7)]
  stopped = pipeline.build_data(config).train()
  for _ in range(4):
    next(stopped)
  resumed = pipeline.build_data(config).train()
  resumed.set_state(stopped.get_state())
  for batch in batches[4:]:
    again = next(resumed)
    np.testing.assert_array_equal(again.inputs, batch.inputs)
    np.testing.assert_array_equal(again.labels, batch.labels)


def test_a_mixture_masks_each_of_its_data_sets(tmp_path, word_piece):
  for name, text in (('one', 'a b c'), ('two', 'cab, cab')):
    (tmp_path / 'files' / name).mkdir(parents=True)
    (tmp_path / 'files' / name / 'train.jsonl').write_text(
        f'{json.dumps(dict(text=text))}\n' * 4)
  config = make_config(tmp_path, word_piece, rate=0.5)
  config.data.mixture = dict(one=dict(weight=1.0), two=dict(weight=1.0))
  inputs, labels, chosen, _ = epochs(config, 8, 8)
  original = np.where(chosen, labels, inputs)
  for first in (6, 8):  # a, c.
    of_one = original[:, 1] == first
    assert of_one.sum() == 32 and 0.3 < chosen[of_one, 1].mean() < 0.7


def test_a_batch_is_described_without_the_data(tmp_path, word_piece):
  write(tmp_path, ['a b'] * 4)
  config = make_config(tmp_path, word_piece)
  described, num_classes, _ = description.describe(config)
  data = pipeline.build_data(config)
  assert described == data.spec and num_classes == data.num_classes == 13
  assert data.spec.inputs.shape == data.spec.target_mask.shape == (4, 8)


@pytest.mark.parametrize('options, text', [
    (dict(rate=0.0), 'config.data.options.rate must lie between 0 and 1; got'),
    (dict(rate=1.0), 'config.data.options.rate must lie between 0 and 1; got'),
    (dict(length=2), 'options.length must be at least 3; got 2'),
    (dict(padding='up'), "options.padding must be 'right' or 'left'"),
])
def test_options_out_of_range_are_refused(tmp_path, word_piece, options, text):
  write(tmp_path, ['a'])
  with pytest.raises(checks.ConfigError, match=text):
    open_split(tmp_path, word_piece, **options)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path, bert_words):
  write(tmp_path, ['a'])
  with pytest.raises(checks.DataError, match=(
      'config.data.options.tokenizer must have a mask token; got Special')):
    open_split(tmp_path, bert_words)


# Words by hand. The Chinese characters have three bytes each.
TEXT = "cats don't  sit, 漢字ab 😀!"


def byte_level():
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  made = tokenizers.Tokenizer(models.BPE(
      {piece: i for i, piece in enumerate([*alphabet, 'at', 'Ġs'])},
      merges=[('a', 't'), ('Ġ', 's')]))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  return made


def sentence_piece(cut):
  """Returns a tokenizer that cuts a text at spaces, or only when it merges."""
  pieces = ['<unk>', '▁', *"catsdon'i,漢字b😀!", 'at', '▁s']
  made = tokenizers.Tokenizer(models.Unigram(
      [(piece, -1.0) for piece in pieces], unk_id=0))
  if cut:
    made.pre_tokenizer = pre_tokenizers.Metaspace()
  else:
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  return made


def word_pieces():
  pieces = ['[UNK]', 'c', '##at', '##s', 'do', '##n', "'", 't', 's', '##it',
            ',', '漢', '字', 'a', '##b', '!']
  made = tokenizers.Tokenizer(models.WordPiece(
      {piece: i for i, piece in enumerate(pieces)}, unk_token='[UNK]'))
  made.normalizer = normalizers.BertNormalizer()
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  return made


@pytest.mark.parametrize('made, expected', [
    (word_pieces(),
     "c##at##s do##n ' t s##it , 漢 字 a##b [UNK] !"),
    (byte_level(),
     "cats Ġdon 't Ġ Ġsit , Ġ æ¼¢ åŃĹ ab ĠðŁĺĢ!"),
    (sentence_piece(True), "▁cats ▁don't ▁ ▁sit, ▁ 漢 字 ab ▁😀!"),
    (sentence_piece(False), "▁cats ▁don't ▁ ▁sit, ▁ 漢 字 ab ▁😀!"),
], ids=['word_piece', 'byte_level', 'sentence_piece', 'no_pre_tokenizer'])
def test_words_of_each_kind_of_tokenizer(made, expected):
  tokenizer = tokenizer_lib.Tokenizer(json.loads(made.to_str()))
  encoding, = tokenizer.encode_spans([TEXT])
  texts = ['ca', TEXT, '', 's']
  _, numbers, *others = words_lib.number_words(
      texts, tokenizer.encode_spans(texts))
  assert [len(x) for x in others] == [0, 1] and others[1] > numbers[-1]
  words = [''.join(token for token, number in zip(encoding.tokens, numbers)
                   if number == word)
           for word in range(numbers[0], numbers[-1] + 1)]
  assert words == expected.split(' ')
  assert len(encoding.tokens) > len(words)
