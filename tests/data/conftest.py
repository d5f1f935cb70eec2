"""Tokenizers small enough to check by hand, a trained one, and images."""

import json

import numpy as np
from PIL import Image
import pytest
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers

LETTERS = 'abcdefghij'

CORPUS = (
    'the cat sat on the mat and the other cat did not sit there',
    'a theory of the weather: whether it rains, or it does not!',
    "it's 1234 o'clock, and the café is open\n\n  until late\t(23:59)",
)


def word_tokenizer(special):
  """Returns a tokenizer of words: the special tokens, then the letters a-j."""
  words = [*special, *LETTERS]
  made = tokenizers.Tokenizer(models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token=special[1]))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(special)
  return made


def save(made, folder, **config):
  folder.mkdir(parents=True, exist_ok=True)
  made.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return str(folder)


@pytest.fixture
def words(tmp_path):
  """A tokenizer's folder: 0 pads, 1 is unknown, 2 ends a text, a-j are 3-12."""
  made = word_tokenizer(['<pad>', '<unk>', '</s>'])
  return save(made, tmp_path / 'words', eos_token='</s>', pad_token='<pad>',
              unk_token='<unk>')


@pytest.fixture
def bert_words(tmp_path):
  """Likewise: 0 pads, 1 is unknown, 2 is [CLS], 3 is [SEP], a-j are 4-13."""
  made = word_tokenizer(['[PAD]', '[UNK]', '[CLS]', '[SEP]'])
  made.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1',
      special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
  made.enable_truncation(4)  # Some files set these; haikd must ignore them.
  made.enable_padding(length=9)
  return save(made, tmp_path / 'bert_words')


@pytest.fixture
def bpe(tmp_path):
  """A folder: byte-level BPE, trained on CORPUS."""
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.train_from_iterator(CORPUS, trainers.BpeTrainer(
      vocab_size=360, special_tokens=['<s>', '</s>'], show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  made.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 0)])
  return save(made, tmp_path / 'bpe', bos_token='<s>', eos_token='</s>')


@pytest.fixture
def merging(tmp_path):
  """A folder: BPE that splits `xabc` into x, a, bc, and keeps `ab` as one."""
  made = tokenizers.Tokenizer(models.BPE(
      vocab={piece: i for i, piece in enumerate(
          ['<pad>', 'a', 'b', 'c', 'x', 'bc', 'ab'])},
      merges=[('b', 'c'), ('a', 'b')]))
  made.add_special_tokens(['<pad>'])
  return save(made, tmp_path / 'merging', pad_token='<pad>')


@pytest.fixture(name='photos', scope='module')
def _photos(tmp_path_factory):
  """JPEGs of several sizes: two classes of six."""
  folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
  for name in ('ant', 'cat'):
    (folder / name).mkdir()
    for i in range(6):
      pixels = rng.integers(0, 255, (12 + i, 20 - i, 3), np.uint8)
      Image.fromarray(pixels).save(folder / name / f'{i}.jpg')
  return folder
