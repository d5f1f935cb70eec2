"""Tokenizers with a smaller vocabulary: tokens a corpus does not need are gone.

A text of the corpus is tokenised to the same pieces before and after. The
argument for each kind:

- Byte pair encoding applies the merge of the lowest rank until none applies.
  The merges that were applied lead to a kept piece, so they are kept, and they
  still have the lowest ranks.
- WordPiece takes the longest piece, and Unigram the best path. Both are kept,
  and have fewer competitors.
- A word that is unknown to WordPiece stays unknown, since it has a character
  that is neither a piece nor part of one. This assumes a vocabulary in which
  every character of a piece is a piece, as in every trained one.
"""

from collections.abc import Iterable
import re
from typing import Any

import numpy as np

from haikd.core import checks
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib

_BYTE = re.compile(r'<0x[0-9A-F]{2}>')


def prune(
    tokenizer: tokenizer_lib.Tokenizer,
    used_ids: Iterable[int]) -> tuple[tokenizer_lib.Tokenizer, np.ndarray]:
  """Returns a tokenizer with a smaller vocabulary.

  It keeps the used ids, special tokens, and the tokens without which other
  texts could not be tokenised. For byte pair encoding and Unigram these are the
  single characters, or the bytes if the tokenizer falls back to them, and every
  part that a kept piece is merged from. For WordPiece they are the single
  characters, at the beginning of a word and within.

  Args:
    tokenizer: the tokenizer to prune.
    used_ids: the ids of the corpus.

  Returns:
    The pruned tokenizer, and kept_ids, int32 `[V]`: for each of its ids, the id
    of the same token in `tokenizer`. The order of tokens does not change.

  Raises:
    DataError: an id that the tokenizer does not have, or a tokenizer that
      cannot be pruned.
  """
  definition = tokenizer.canonical()
  model = definition['model']
  kind = model['type']
  if kind not in _ALPHABETS:
    raise checks.DataError(
        'config.data.options.prune must be False for a tokenizer of this type; '
        f'got model.type={kind!r}. Types that can be pruned: '
        f'{", ".join(_ALPHABETS)}.')
  used = {int(i) for i in used_ids}
  unknown = sorted(i for i in used if tokenizer.token_of(i) is None)
  if unknown:
    raise checks.DataError(
        f'used_ids must be ids of the tokenizer; got {unknown[0]}, '
        f'size={tokenizer.size}. Use the tokenizer that made them.')
  kept = used | _special_ids(tokenizer, definition) | _ALPHABETS[kind](model)
  if kind == 'BPE':
    kept |= _merge_parts(model, kept)
  kept_ids = np.array(sorted(kept), np.int32)
  new_ids = {int(old): new for new, old in enumerate(kept_ids)}
  pruned = tokenizer_lib.Tokenizer(
      {**definition,
       'added_tokens': [{**token, 'id': new_ids[token['id']]}
                        for token in definition['added_tokens']
                        if token['id'] in new_ids],
       'post_processor': _renumber(definition['post_processor'], new_ids),
       'model': _prune_model(model, new_ids)},
      _renumber_config(tokenizer.config, new_ids),
      templates=tokenizer.templates, source='the pruned tokenizer')
  for new, old in enumerate(kept_ids):
    if pruned.token_of(new) != tokenizer.token_of(old):
      raise checks.DataError(
          'config.data.options.prune must be False for a tokenizer whose added '
          'tokens are neither in the vocabulary nor after it; got '
          f'{tokenizer.token_of(old)!r}, id={old}. Turn pruning off.')
  return pruned, kept_ids


def _special_ids(tokenizer, definition):
  """Returns the ids of special tokens, and those that processors insert."""
  ids = text_tokenizers.special_ids(tokenizer, definition)
  # Renumbering looks up every id that a processor inserts.
  _renumber(definition['post_processor'], _RecordingIdentity(ids))
  return ids


class _RecordingIdentity(dict):
  """Maps every id to itself, and adds it to a set."""

  def __init__(self, ids):
    self._ids = ids

  def __getitem__(self, old):
    self._ids.add(old)
    return old


def _renumber(processor, new_ids):
  """Returns a post-processor with its ids mapped by `new_ids`."""
  if processor is None:
    return None
  processor = dict(processor)
  if processor['type'] == 'Sequence':
    processor['processors'] = [_renumber(p, new_ids)
                               for p in processor['processors']]
  if processor['type'] == 'TemplateProcessing':
    processor['special_tokens'] = {
        name: {**token, 'ids': [new_ids[i] for i in token['ids']]}
        for name, token in processor['special_tokens'].items()
    }
  if processor['type'] in ('BertProcessing', 'RobertaProcessing'):
    for role in ('sep', 'cls'):
      token, old = processor[role]
      processor[role] = [token, new_ids[old]]
  return processor


def _renumber_config(config, new_ids):
  """Returns tokenizer_config.json with the added tokens that are kept."""
  key = 'added_tokens_decoder'
  if key not in config:
    return config
  return {**config,
          key: {str(new_ids[int(old)]): token
                for old, token in config[key].items() if int(old) in new_ids}}


def _bpe_alphabet(model):
  """Returns the ids of the bytes or characters, and of unk."""
  if model.get('byte_fallback'):
    return {i for token, i in model['vocab'].items()
            if _BYTE.fullmatch(token) or token == model.get('unk_token')}
  prefix = model.get('continuing_subword_prefix') or ''
  suffix = model.get('end_of_word_suffix') or ''
  return {
      i for token, i in model['vocab'].items()
      if len(token.removeprefix(prefix).removesuffix(suffix)) == 1 or
      len(token) == 1 or token == model.get('unk_token')
  }


def _word_piece_alphabet(model):
  """Returns the ids of the characters, and of unk."""
  prefix = model['continuing_subword_prefix']
  return {i for token, i in model['vocab'].items()
          if len(token.removeprefix(prefix)) == 1 or len(token) == 1 or
          token == model['unk_token']}


def _unigram_alphabet(model):
  """Returns the ids of the bytes or characters, of unk, and of the worst piece.

  The score of unk is that of the worst piece less a constant.
  """
  pieces, bytes_only = model['vocab'], model.get('byte_fallback')
  kept = {i for i, (piece, _) in enumerate(pieces)
          if (_BYTE.fullmatch(piece) if bytes_only else len(piece) == 1)}
  kept.add(min(range(len(pieces)), key=lambda i: pieces[i][1]))
  if model['unk_id'] is not None:
    kept.add(model['unk_id'])
  return kept


def _word_level_alphabet(model):
  """Returns the id of unk."""
  return {i for token, i in model['vocab'].items()
          if token == model['unk_token']}


# The ids that every text needs, by the type of the model.
_ALPHABETS = dict(
    BPE=_bpe_alphabet, WordPiece=_word_piece_alphabet,
    Unigram=_unigram_alphabet, WordLevel=_word_level_alphabet)


def _merges(model):
  """Yields (left, right, merged) of every merge, as tokens."""
  prefix = model.get('continuing_subword_prefix') or ''
  # Older releases of the package write a merge as a string.
  for merge in model['merges']:
    left, right = merge.split(' ') if isinstance(merge, str) else merge
    yield left, right, left + right.removeprefix(prefix)


def _merge_parts(model, kept):
  """Returns the ids of all parts that pieces can be merged from."""
  parts_of = {}
  for left, right, merged in _merges(model):
    parts_of.setdefault(merged, []).extend((left, right))
  tokens = {i: token for token, i in model['vocab'].items()}
  part_ids, todo = set(), [tokens[i] for i in kept if i in tokens]
  while todo:
    for part in parts_of.pop(todo.pop(), ()):
      part_ids.add(model['vocab'][part])
      todo.append(part)
  return part_ids


def _prune_model(model: dict[str, Any],
                 new_ids: dict[int, int]) -> dict[str, Any]:
  """Returns a model with the kept tokens, renumbered, and their merges."""
  vocab = model['vocab']
  if isinstance(vocab, list):  # Unigram, where an id is an index.
    pruned = {**model,
              'vocab': [vocab[old] for old in new_ids if old < len(vocab)]}
    if model['unk_id'] is not None:
      pruned['unk_id'] = new_ids[model['unk_id']]
    return pruned
  pruned = {**model, 'vocab': {token: new_ids[old]
                               for token, old in vocab.items()
                               if old in new_ids}}
  if 'merges' in model:
    pruned['merges'] = [
        [left, right] for left, right, merged in _merges(model)
        if merged in pruned['vocab']
    ]
  return pruned
