"""Places of tokens in texts: as the package tokenizers has them in offsets."""

import numpy as np
import pytest

from haikd.data.text import byte_level
from haikd.data.text import learned
from haikd.data.text import tokenizer as tokenizer_lib

TEXTS = ['the cat', '', ' café \U0001f600\U0001f600!', '漢字 and\n\n\t the cat ',
         "it's</s> 1234 </s>", 'e\u0301 \u200d\x00\u2028x', 'é' * 9]


@pytest.fixture(params=['bpe', 'words'])
def tokenizer(request):
  return tokenizer_lib.load(request.getfixturevalue(request.param))


def test_places_are_those_of_offsets(tokenizer):
  encodings = tokenizer.encode_spans(TEXTS)
  for text, encoding, spans in zip(TEXTS, encodings,
                                   learned.spans_of(tokenizer, TEXTS)):
    assert spans.ids.tolist() == encoding.ids
    for place in range(len(text) + 1):
      first = next((i for i, (_, end) in enumerate(encoding.offsets)
                    if end > place), len(encoding.ids))
      assert spans.first_beyond(place) == first
      for i, (start, end) in enumerate(encoding.offsets):
        assert spans.begins_before(i, place) == (start < place)
        # Within a character there is nothing to say.
        if i + 1 == len(encoding.ids) or encoding.offsets[i + 1][0] >= end:
          assert spans.after(i, place) == text[end:place]


def test_only_tokens_that_are_bytes_have_sizes(bpe, words):
  loaded = tokenizer_lib.load(bpe)
  sizes = byte_level.sizes(loaded)
  for text in TEXTS:
    ids, = loaded.encode_batch([text], special=False)
    assert sizes[ids.ids].sum() == len(text.encode())
  assert byte_level.sizes(tokenizer_lib.load(words)) is None
  # A normalizer may change texts, and a blank before them is none of theirs.
  prefix = dict(loaded.definition['pre_tokenizer'], add_prefix_space=True)
  for change in (dict(normalizer=dict(type='NFC')), dict(pre_tokenizer=prefix)):
    changed = tokenizer_lib.Tokenizer({**loaded.definition, **change})
    assert byte_level.sizes(changed) is None


def test_texts_that_lose_bytes_have_offsets(bpe):
  loaded = tokenizer_lib.load(bpe)
  definition = loaded.canonical()
  definition['added_tokens'].append(dict(
      id=loaded.size, content='<x>', special=True, normalized=False,
      lstrip=True, rstrip=False, single_word=False))
  changed = tokenizer_lib.Tokenizer(definition)
  text = 'the   <x>cat'
  spans, = learned.spans_of(changed, [text])
  place = int(np.flatnonzero(spans.ids == loaded.size)[0])
  # The token takes the blanks before it.
  assert spans.first_beyond(text.index('<')) == place
  assert spans.after(place, len(text)) == 'cat'
