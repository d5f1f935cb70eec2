"""The files of a tokenizer in an exported folder."""

from collections.abc import Mapping
import pathlib
from typing import Any, NamedTuple, Optional, Union

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import token_ids
from haikd.storage import files
from haikd.storage import paths

_TOKENIZER, _CONFIG, _ADDED = (
    'tokenizer.json', 'tokenizer_config.json', 'added_tokens.json')
# Files without ids.
_SPECIAL = 'special_tokens_map.json'
# The chat template, and the same as processors of transformers wrote it.
_TEMPLATE, _OLD_TEMPLATE = 'chat_template.jinja', 'chat_template.json'
_MORE_TEMPLATES = 'additional_chat_templates'
# The field with it, in _CONFIG and _OLD_TEMPLATE.
_TEMPLATE_FIELD = 'chat_template'
# The vocabulary again, for tokenizers without tokenizer.json.
_VOCABULARIES = ('vocab.txt', 'vocab.json', 'merges.txt', 'tokenizer.model',
                 'spiece.model', 'sentencepiece.bpe.model', 'tekken.json')

_ROLES = ('bos', 'eos', 'pad')  # A config has the ids of these tokens.

# `{name in the folder: the file to copy, or the content to write}`.
Files = dict[str, Union[pathlib.Path, dict[str, Any]]]


class TokenizerSource(NamedTuple):
  """The tokenizer of an export.

  Attributes:
    path: a folder with `tokenizer.json`, or that file.
    original: the folder of the tokenizer that it was prepared from, whose files
      are taken where they say more; None if there is none.
    kept_ids: `[V]` integers, each id's id in the original; None if it is not
      pruned.
  """

  path: paths.Path
  original: Optional[paths.Path] = None
  kept_ids: Any = None


def collect(source: Optional[TokenizerSource]) -> Files:
  """Returns the files of a tokenizer.

  Without pruning they are those of the original, byte by byte. A pruned
  tokenizer has another vocabulary, and other files get its ids. An original
  without tokenizer_config.json gets that of the data, which names its special
  tokens. A chat template that the data chose replaces all of the original's.

  Args:
    source: the tokenizer; None for none.

  Raises:
    DataError: there is none, or a file cannot be read.
  """
  if source is None:
    return {}
  prepared = _of_folder(source.path)
  if source.original is None:
    return prepared
  found = _of_folder(source.original)
  if _CONFIG not in found:
    found = {**{name: prepared[name] for name in (_CONFIG, _SPECIAL)
                if name in prepared}, **found}
  if source.kept_ids is not None:
    found = _pruned(found, prepared[_TOKENIZER],
                    token_ids.Renumbering(source.kept_ids))
  template = _template(prepared)
  return found if template in (None, _template(found)) else _with_template(
      found, prepared[_TEMPLATE])


def _pruned(found, tokenizer, renumbering):
  """Returns files for a pruned tokenizer, which is given."""
  pruned = {name: path for name, path in found.items()
            if name not in (*_VOCABULARIES, _TOKENIZER)}
  pruned[_TOKENIZER] = tokenizer
  if _CONFIG in found:
    config = _content(found[_CONFIG])
    if isinstance(added := config.get('added_tokens_decoder'), Mapping):
      pruned[_CONFIG] = {
          **config, 'added_tokens_decoder': renumbering.keys(added)}
  if _ADDED in found:
    pruned[_ADDED] = renumbering.tokens(_content(found[_ADDED]))
  return pruned


def _template(found):
  """Returns the chat template, if it has a file; None without one."""
  path, old = found.get(_TEMPLATE), found.get(_OLD_TEMPLATE)
  if path is not None:
    return paths.read(path)
  text = None if old is None else _content(old).get(_TEMPLATE_FIELD)
  return text.encode() if isinstance(text, str) else None


def _with_template(found, template):
  """Returns files with a chat template in place of all that they have."""
  changed = {
      name: path for name, path in found.items()
      if name != _OLD_TEMPLATE and not name.startswith(_MORE_TEMPLATES)}
  config = _content(found.get(_CONFIG, {}))
  if _TEMPLATE_FIELD in config:
    changed[_CONFIG] = {name: value for name, value in config.items()
                        if name != _TEMPLATE_FIELD}
  return {**changed, _TEMPLATE: template}


def special_ids(collected: Files) -> dict[str, Optional[int]]:
  """Returns the fields for the ids of special tokens; None for unknown ids.

  transformers gives a config without these fields the ids of the first
  tokenizer of its family.

  Args:
    collected: the files of a tokenizer.

  Raises:
    DataError: a file cannot be read.
  """
  if not {_TOKENIZER, _CONFIG} <= set(collected):
    return {}
  special, config, tokenizer = (_content(collected.get(name, {}))
                                for name in (_SPECIAL, _CONFIG, _TOKENIZER))
  config = {**special, **config}
  ids = {token['content']: token['id']
         for token in tokenizer.get('added_tokens') or ()}
  fields = {}
  for role in _ROLES:
    token = config.get(f'{role}_token')
    token = token.get('content') if isinstance(token, Mapping) else token
    fields[f'{role}_token_id'] = ids.get(token)
  return fields


def write(folder: pathlib.Path, collected: Files) -> None:
  """Writes the files of a tokenizer.

  Args:
    folder: to write to.
    collected: the files.

  Raises:
    OSError: a file cannot be read or written.
  """
  for name, content in collected.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pathlib.Path):
      (folder / name).write_bytes(paths.read(content))
    else:
      files.write_json(folder / name, content)


def _content(content) -> dict[str, Any]:
  if isinstance(content, pathlib.Path):
    return fields_lib.read_object(content)
  return content


def _of_folder(path: paths.Path) -> Files:
  """Returns the files in the folder of a tokenizer by their names."""
  path = pathlib.Path(path)
  is_file = path.is_file() and path.suffix == '.json'
  folder = path.parent if is_file else path
  beside: tuple[str, ...] = (_CONFIG, _SPECIAL, _TEMPLATE, _OLD_TEMPLATE,
                             f'{_MORE_TEMPLATES}/*.jinja')
  if not is_file or path.name == _TOKENIZER:
    beside += (_TOKENIZER, _ADDED, *_VOCABULARIES)
  found: Files = {
      str(file.relative_to(folder)): file
      for glob in beside for file in sorted(folder.glob(glob))
  }
  if is_file:
    found[_TOKENIZER] = path
  if _TOKENIZER not in found:
    raise checks.DataError(
        f'tokenizer must be a folder with {_TOKENIZER}, or that file; got '
        f'{path}. Give the one that the data was prepared with.')
  return found
