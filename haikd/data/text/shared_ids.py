"""Whether two tokenizers are one: every id that both have is the same token.

Files of one tokenizer differ in much that no id depends on: how merges are
spelt, which fields are left to their defaults, what a text begins and ends
with, how ids become text again. What ids depend on is compared, as the package
`tokenizers` reads it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Optional

from haikd.core import checks
from haikd.data.text import tokenizer as tokenizer_lib

# What ByteLevel splits a text into if it does so by itself.
_BYTE_LEVEL_REGEX = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r'|\s+(?!\S)|\s+')
_SHOWN = 3  # Differences that a message shows.

# Fields of an added token that decide where it is found in a text.
_ADDED_FIELDS = ('single_word', 'lstrip', 'rstrip', 'normalized')

# Messages on how two tokenizers differ, by their digests; empty if they don't.
# A comparison reads all tokens, and a run asks several times.
_compared: dict[tuple[str, str], str] = {}


def count(first: tokenizer_lib.Tokenizer,
          second: tokenizer_lib.Tokenizer) -> int:
  """Returns how many ids two tokenizers share: those below the number.

  One of them may have further tokens, with higher ids.

  Args:
    first: a tokenizer.
    second: another.

  Returns:
    The size of the smaller one.

  Raises:
    ValueError: they are not one tokenizer; the message, without a full stop,
      says what differs.
  """
  size = min(first.size, second.size)
  digests = first.digest, second.digest
  if digests not in _compared:
    _compared[digests] = checks.abbreviate(
        _differences(first, second, size), limit=_SHOWN)
  if _compared[digests]:
    raise ValueError(_compared[digests])
  return size


def _differences(first, second, size):
  """Returns how two tokenizers differ below a size; empty if they don't."""
  if first.digest == second.digest:
    return []
  ours, theirs = _Comparable(first, size), _Comparable(second, size)
  differences = [
      f'id {i} is {ours.tokens.get(i)!r} and {theirs.tokens.get(i)!r}'
      for i in range(size) if ours.tokens.get(i) != theirs.tokens.get(i)
  ]
  if not differences:
    differences = [
        f'{name} {_shorten(ours.rules[name])} and '
        f'{_shorten(theirs.rules[name])}'
        for name in ours.rules if ours.rules[name] != theirs.rules[name]
    ]
  return differences


class _Comparable:
  """What the ids of a tokenizer depend on, in one notation.

  Attributes:
    tokens: `{id: token}` below the size.
    rules: what else ids depend on, by names for messages.
  """

  def __init__(self, tokenizer: tokenizer_lib.Tokenizer, size: int):
    definition = tokenizer.canonical()
    self.tokens = {i: tokenizer.token_of(i) for i in range(size)}
    model = definition['model']
    shared = set(self.tokens.values())
    self.rules: dict[str, Any] = {
        'normalizer': list(_steps(definition.get('normalizer'))),
        'pre_tokenizer': list(_steps(definition.get('pre_tokenizer'))),
        'model': _settings(model),
        'merges': _merges(model, shared),
        'scores': _scores(model, size),
        'added_tokens': {
            token['id']: [token['content'], *map(token.get, _ADDED_FIELDS)]
            for token in definition.get('added_tokens', ())
            if token['id'] < size
        },
    }


def _steps(part: Optional[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
  """Yields the steps of a normalizer or pre-tokenizer, one after another."""
  if part is None:
    return
  kind = part['type']
  if kind == 'Sequence':
    for step in part.get('normalizers', part.get('pretokenizers', ())):
      yield from _steps(step)
    return
  step = dict(part)
  if kind == 'ByteLevel':
    step.pop('trim_offsets', None)  # It moves offsets, not ids.
    splits = step.pop('use_regex', True)
    if splits and not step.get('add_prefix_space'):
      yield _split(_BYTE_LEVEL_REGEX)
  if kind == 'Digits':
    step = _split(r'\p{N}' if part['individual_digits'] else r'\p{N}+')
  yield step


def _split(regex):
  return dict(type='Split', pattern=dict(Regex=regex), behavior='Isolated',
              invert=False)


def _settings(model):
  """Returns the settings of a model, with one notation for what is off."""
  settings = {name: value or None for name, value in model.items()
              if name not in ('vocab', 'merges')}
  if model.get('unk_token') is None:
    settings['fuse_unk'] = None
  return settings


def _merges(model, shared):
  """Returns the merges of shared tokens, in order."""
  return [tuple(merge) for merge in model.get('merges', ())
          if {*merge, ''.join(merge)} <= shared]


def _scores(model, size):
  """Returns the scores of a Unigram model below the size."""
  vocabulary = model.get('vocab')
  if not isinstance(vocabulary, list):
    return []
  return [score for _, score in vocabulary[:size]]


def _shorten(value, limit=80):
  text = repr(value)
  return text if len(text) <= limit else f'{text[:limit]}…'
