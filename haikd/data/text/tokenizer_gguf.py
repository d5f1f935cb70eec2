"""Byte-level BPE tokenizers, built from the metadata of a GGUF file."""

from collections.abc import Mapping
import os
import reprlib
from typing import Any, NamedTuple

from haikd.core import checks
from haikd.storage import gguf_header

_PREFIX = 'tokenizer.ggml.'
_TEMPLATE = 'tokenizer.chat_template'
# The types of the entries of what makes a tokenizer.
_LISTS = dict(tokens=str, merges=str, token_type=int)

# The regular expressions that split a text before merging, as in llama.cpp and
# the models' files. ByteLevel comes last and splits no further.
_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
         r'|\s+(?!\S)|\s+')
_LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
          r'|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')


class _PreTokenizer(NamedTuple):
  """What a value of `tokenizer.ggml.pre` means.

  Attributes:
    splits: regular expressions that split a text one after the other.
    ignore_merges: whether a word of the vocabulary is one token, even if no
      merge makes it.
    add_bos: whether a text begins with bos, if the file does not say.
    nfc: whether texts are normalised to NFC.
  """

  splits: tuple[str, ...]
  ignore_merges: bool = False
  add_bos: bool = False
  nfc: bool = False


_PRE_TOKENIZERS = {
    'gpt-2': _PreTokenizer((_GPT2,)),
    'smollm': _PreTokenizer((r'\p{N}', _GPT2)),
    'default': _PreTokenizer((
        r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+', r'[0-9][0-9][0-9]')),
    'llama-bpe': _PreTokenizer(
        (_LLAMA.format(digits=r'\p{N}{1,3}'),), ignore_merges=True,
        add_bos=True),
    'qwen2': _PreTokenizer((_LLAMA.format(digits=r'\p{N}'),), nfc=True),
}

# Values of `tokenizer.ggml.token_type`.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5

# The names of special tokens in GGUF, which has the typo.
_GGUF_NAMES = dict(
    bos='bos', eos='eos', pad='padding', unk='unknown', cls='cls',
    sep='seperator', mask='mask')

Definition = dict[str, Any]


def read(path: str) -> tuple[Definition, dict[str, Any]]:
  """Reads the tokenizer of a GGUF file.

  Args:
    path: the file.

  Returns:
    The content that `tokenizer.json` and `tokenizer_config.json` of the same
    tokenizer would have.

  Raises:
    DataError: a file that is missing or is not GGUF, or a tokenizer that is not
      byte-level BPE with a known way of splitting texts.
  """
  fields = _fields(path)
  kind = fields.get('model')
  if kind != 'gpt2':
    raise checks.DataError(
        f"tokenizer.ggml.model of {path!r} must be 'gpt2', byte-level BPE; got "
        f'{kind!r}. Give the folder with tokenizer.json that the file was made '
        'from.')
  pre = fields.get('pre', 'default')
  if not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
    raise checks.DataError(
        f'tokenizer.ggml.pre of {path!r} must be a known way of splitting '
        f'texts; got {pre!r}. {checks.suggest(str(pre), _PRE_TOKENIZERS)} '
        'Give the folder with tokenizer.json that the file was made from.')
  _check_lists(path, fields)
  special = {role: _token(path, fields, f'{name}_token_id')
             for role, name in _GGUF_NAMES.items()
             if f'{name}_token_id' in fields}
  config: dict[str, Any] = dict(
      tokenizer_class='PreTrainedTokenizerFast',
      clean_up_tokenization_spaces=False,
      **{f'{role}_token': token for role, token in special.items()})
  if 'chat_template' in fields:
    config['chat_template'] = fields['chat_template']
  return _definition(fields, _PRE_TOKENIZERS[pre], special), config


def _check_lists(path, fields):
  """Refuses metadata without the lists that make a tokenizer."""
  for key, kind in _LISTS.items():
    if key not in fields:
      raise checks.DataError(
          f'{path!r} must have the metadata {_PREFIX}{key}; got only '
          f'{sorted(fields)}. Convert the model again.')
    value = fields[key]
    if not isinstance(value, list) or not all(
        isinstance(entry, kind) for entry in value):
      raise checks.DataError(
          f'{_PREFIX}{key} of {path!r} must be a list of {kind.__name__}; got '
          f'{reprlib.repr(value)}. Convert the model again.')
  if len(fields['token_type']) != len(fields['tokens']):
    raise checks.DataError(
        f'{_PREFIX}token_type of {path!r} must have an entry for each token; '
        f'got {len(fields["token_type"])} for {len(fields["tokens"])}. Convert '
        'the model again.')


def _token(path, fields, key):
  """Returns the token whose id is in a field."""
  index, tokens = fields[key], fields['tokens']
  if not isinstance(index, int) or not 0 <= index < len(tokens):
    raise checks.DataError(
        f'{_PREFIX}{key} of {path!r} must be below {len(tokens)}, the number '
        f'of tokens; got {reprlib.repr(index)}. Convert the model again.')
  return tokens[index]


def _fields(path):
  """Returns the metadata of the tokenizer, without its prefix."""
  if not os.path.exists(path):
    raise checks.DataError(
        f"A tokenizer 'gguf:<file>' must name a GGUF file; got {path!r}, which "
        'is missing. Correct config.data.options.tokenizer.')
  try:
    metadata = gguf_header.read(path).metadata
  except checks.DataError:
    raise
  except (OSError, ValueError) as err:
    raise checks.DataError(
        f'{path!r} must be a GGUF file; got {checks.describe(err)}. Fetch it '
        'again.') from err
  fields = {name.removeprefix(_PREFIX): value
            for name, value in metadata.items() if name.startswith(_PREFIX)}
  if _TEMPLATE in metadata:
    fields['chat_template'] = metadata[_TEMPLATE]
  return fields


def _definition(fields: Mapping[str, Any], pre: _PreTokenizer,
                special: Mapping[str, str]) -> Definition:
  """Returns the content that tokenizer.json would have."""
  kinds = fields['token_type']
  vocab = {
      token: i for i, token in enumerate(fields['tokens'])
      if kinds[i] != _UNUSED
  }
  added = [
      dict(id=i, content=fields['tokens'][i], special=kind == _CONTROL,
           normalized=False, lstrip=False, rstrip=False, single_word=False)
      for i, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED)
  ]
  splits = [*map(_split, pre.splits), _byte_level(regex=False)]
  model = dict(
      type='BPE', dropout=None, unk_token=None, continuing_subword_prefix=None,
      end_of_word_suffix=None, fuse_unk=False, byte_fallback=False,
      ignore_merges=pre.ignore_merges, vocab=vocab,
      merges=[merge.split(' ') for merge in fields['merges']])
  return dict(
      version='1.0', truncation=None, padding=None, added_tokens=added,
      normalizer=dict(type='NFC') if pre.nfc else None,
      pre_tokenizer=dict(type='Sequence', pretokenizers=splits),
      post_processor=_template(
          first=special['bos'] if fields.get('add_bos_token',
                                             pre.add_bos) else None,
          last=special['eos'] if fields.get('add_eos_token') else None,
          ids=vocab),
      decoder=_byte_level(regex=True), model=model)


def _split(regex):
  return dict(type='Split', pattern=dict(Regex=regex), behavior='Isolated',
              invert=False)


def _byte_level(*, regex):
  return dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True,
              use_regex=regex)


def _template(*, first, last, ids):
  """Returns a post-processor that adds tokens around a text, or None."""
  if first is None and last is None:
    return None

  def around(*sequences):
    pieces = []
    for kind, sequence in enumerate(sequences):
      for token in (first, sequence, last):
        if token is sequence:
          pieces.append(dict(Sequence=dict(id=token, type_id=kind)))
        elif token is not None:
          pieces.append(dict(SpecialToken=dict(id=token, type_id=kind)))
    return pieces

  return dict(
      type='TemplateProcessing', single=around('A'), pair=around('A', 'B'),
      special_tokens={
          token: dict(id=token, ids=[ids[token]], tokens=[token])
          for token in (first, last) if token is not None
      })
