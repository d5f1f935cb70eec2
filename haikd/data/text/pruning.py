"""Tokenizers with a smaller vocabulary: what a corpus does not need is dropped.

A text of the corpus is cut into the same pieces before and after. The argument,
kind by kind: byte pair encoding applies the merge of the lowest rank until
there is none left, and all that were applied lead to a piece that is kept, so
they are kept, and are still the lowest; WordPiece takes the longest piece, and
Unigram the best path, both of which are still there, with fewer rivals. A word
that WordPiece does not know stays unknown, since a character of it is neither a
piece nor in one; this takes a vocabulary that has every character of its pieces
as a piece, as all do that were trained.
"""

from collections.abc import Iterable
import re
from typing import Any

import numpy as np

from haikd.core import checks
from haikd.data.text import tokenizer as tokenizer_lib

_BYTE = re.compile(r'<0x[0-9A-F]{2}>')


def prune(
    tokenizer: tokenizer_lib.Tokenizer,
    used_ids: Iterable[int]) -> tuple[tokenizer_lib.Tokenizer, np.ndarray]:
  """Returns a tokenizer with a smaller vocabulary.

  Beside the ids used, special tokens stay, and what other texts need to be cut
  at all: in byte pair encoding and Unigram the single characters, or bytes
  where there is a fallback to them, and every part that a kept piece is merged
  from; in WordPiece the single characters, alone and inside of a word.

  Args:
    tokenizer: the whole one.
    used_ids: ids that texts are made of.

  Returns:
    The tokenizer, and kept_ids, int32 `[V]`: which id of the whole tokenizer
    each of its ids was. The order stays.

  Raises:
    DataError: an id that the tokenizer does not have, or a tokenizer of another
      kind.
  """
  definition = tokenizer.canonical()
  model = definition['model']
  kind = model['type']
  if kind not in _VOCABULARIES:
    raise checks.DataError(
        'pruning.prune: tokenizer must be one of '
        f'{", ".join(_VOCABULARIES)}; got model.type={kind!r}. Set '
        'config.data.options.prune=False.')
  used = {int(i) for i in used_ids}
  unknown = sorted(i for i in used if tokenizer.token_of(i) is None)
  if unknown:
    raise checks.DataError(
        f'pruning.prune: used_ids must be ids of the tokenizer; got '
        f'{unknown[0]}, size={tokenizer.size}. Use the tokenizer that made '
        'them.')
  kept = used | _special(tokenizer, definition) | _VOCABULARIES[kind](model)
  if kind == 'BPE':
    kept |= _parts(model, kept)
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
      template=tokenizer.template, source='the pruned tokenizer')
  for new, old in enumerate(kept_ids):
    if pruned.token_of(new) != tokenizer.token_of(old):
      raise checks.DataError(
          'pruning.prune: added tokens must stand behind the vocabulary, or in '
          f'it; got {tokenizer.token_of(old)!r}, id={old}. Set '
          'config.data.options.prune=False.')
  return pruned, kept_ids


def _special(tokenizer, definition):
  """Returns the ids of special tokens, and those that processors put in."""
  ids = {i for i in tokenizer.special if i is not None}
  ids |= {token['id'] for token in definition['added_tokens']
          if token['special']}
  _renumber(definition['post_processor'], _Seen(ids))
  return ids


class _Seen(dict):
  """Numbers that stay as they are, and are taken down."""

  def __init__(self, ids):
    self._ids = ids

  def __getitem__(self, old):
    self._ids.add(old)
    return old


def _renumber(processor, new_ids):
  """Returns a post-processor with other ids."""
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
  """Returns tokenizer_config.json with the added tokens that are left."""
  key = 'added_tokens_decoder'
  if key not in config:
    return config
  return {**config,
          key: {str(new_ids[int(old)]): token
                for old, token in config[key].items() if int(old) in new_ids}}


def _of_bpe(model):
  """Returns ids of the alphabet: bytes, or else characters."""
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


def _of_word_piece(model):
  prefix = model['continuing_subword_prefix']
  return {i for token, i in model['vocab'].items()
          if len(token.removeprefix(prefix)) == 1 or len(token) == 1 or
          token == model['unk_token']}


def _of_unigram(model):
  """Returns ids of the alphabet, and of what the score of unk hangs on."""
  pieces, bytes_only = model['vocab'], model.get('byte_fallback')
  kept = {i for i, (piece, _) in enumerate(pieces)
          if (_BYTE.fullmatch(piece) if bytes_only else len(piece) == 1)}
  kept.add(min(range(len(pieces)), key=lambda i: pieces[i][1]))
  if model['unk_id'] is not None:
    kept.add(model['unk_id'])
  return kept


def _of_word_level(model):
  return {i for token, i in model['vocab'].items()
          if token == model['unk_token']}


_VOCABULARIES = dict(BPE=_of_bpe, WordPiece=_of_word_piece, Unigram=_of_unigram,
                     WordLevel=_of_word_level)


def _pairs(model):
  """Yields (left, right, merged) of every merge, as tokens."""
  prefix = model.get('continuing_subword_prefix') or ''
  for merge in model['merges']:  # Older releases of the package have strings.
    left, right = merge.split(' ') if isinstance(merge, str) else merge
    yield left, right, left + right.removeprefix(prefix)


def _parts(model, kept):
  """Returns the ids of all that pieces are merged from, in any way."""
  made_of = {}
  for left, right, merged in _pairs(model):
    made_of.setdefault(merged, []).extend((left, right))
  tokens = {i: token for token, i in model['vocab'].items()}
  parts, todo = set(), [tokens[i] for i in kept if i in tokens]
  while todo:
    for part in made_of.pop(todo.pop(), ()):
      parts.add(model['vocab'][part])
      todo.append(part)
  return parts


def _prune_model(model: dict[str, Any],
                 new_ids: dict[int, int]) -> dict[str, Any]:
  vocab = model['vocab']
  if isinstance(vocab, list):  # Of Unigram; an id is a place in it.
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
        [left, right] for left, right, merged in _pairs(model)
        if merged in pruned['vocab']
    ]
  return pruned
