"""Which chat template a data set uses."""

from collections.abc import Mapping
import os
from typing import Any, Optional

from haikd.core import checks
from haikd.data.text import framing
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.storage import paths

_OPTION = 'config.data.options.chat_template'
_MOST_CHARACTERS = 2**18  # Of a template.


def choose(tokenizer: tokenizer_lib.Tokenizer,
           option: Optional[str] = None) -> str:
  """Returns the chat template of a data set.

  Args:
    tokenizer: the tokenizer of the data.
    option: a template, its file, a tokenizer that has it, or the name of one of
      the tokenizer's; None for the tokenizer's only or default one.

  Raises:
    ConfigError: there is no such template.
    DataError: the file cannot be read, or a template is no text.
  """
  named = templates(tokenizer)
  if option is None or option in named:
    template = named.get(option or 'default')
  elif '{{' in option or '{%' in option:
    template = option
  elif _is_tokenizer(option):
    return choose(text_tokenizers.load(option))
  else:
    template = _read(option, named)
  if template is None and named:
    raise checks.ConfigError(
        f'{_OPTION} must name one of the templates of the tokenizer, of which '
        f"none is called 'default'; got None. {checks.suggest('', named)}")
  if template is None:
    raise checks.ConfigError(
        f'{_OPTION} must be a template or its file, since the tokenizer has '
        'none; got None. Set it to the folder of an instruct model with this '
        'tokenizer.')
  if not isinstance(template, str) or len(template) > _MOST_CHARACTERS:
    got = (f'{len(template):,}' if isinstance(template, str) else
           type(template).__name__)
    raise checks.DataError(
        f'the chat template must be a text of at most {_MOST_CHARACTERS:,} '
        f'characters; got {got}. Set {_OPTION}.')
  return template


def variables(tokenizer: tokenizer_lib.Tokenizer, choice: framing.Choice,
              options: Optional[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns what a template may use: the special tokens, and options.

  Args:
    tokenizer: the tokenizer of the data.
    choice: special tokens that the data set uses in place of the tokenizer's.
    options: more, such as dict(enable_thinking=False).
  """
  special = {role: tokenizer.token_of(index)
             for role, index in tokenizer.special._asdict().items()
             if index is not None}
  chosen = {role: getattr(choice, role) for role in ('eos', 'bos', 'pad')
            if getattr(choice, role) is not None}
  tokens = {f'{role}_token': token
            for role, token in {**special, **chosen}.items()}
  return {**tokens, **(options or {})}


def templates(tokenizer: tokenizer_lib.Tokenizer) -> Mapping[str, str]:
  """Returns `{name: template}` as transformers finds them in a folder."""
  if tokenizer.templates:
    return tokenizer.templates
  template = tokenizer.config.get('chat_template')
  if isinstance(template, list):
    try:
      return {each['name']: each['template'] for each in template}
    except (KeyError, TypeError) as err:
      raise checks.DataError(
          'chat_template in tokenizer_config.json must be a text, or a list of '
          f'objects with name and template; got {checks.describe(err)}. Set '
          f'{_OPTION}, or restore the file.') from err
  if isinstance(template, Mapping):
    return dict(template)
  return {} if template is None else dict(default=template)


def with_defaults(template: str, choice: framing.Choice,
                  options: Optional[Mapping[str, Any]]) -> str:
  """Returns a template that writes without options what it does with them.

  transformers and servers render chats by the exported template, and know of no
  other options.

  Args:
    template: the template.
    choice: as for `variables`; these are fixed.
    options: likewise; whoever renders may give others.
  """
  lines = [f'{role}_token = {getattr(choice, role)!r}'
           for role in ('eos', 'bos', 'pad')
           if getattr(choice, role) is not None and f'{role}_token' in template]
  lines += [f'{name} = {name} if {name} is defined else {value!r}'
            for name, value in (options or {}).items()]
  if not lines:
    return template
  # A newline after a block is cut off.
  blank = '\n' if template.startswith('\n') else ''
  return ''.join(f'{{% set {line} %}}' for line in lines) + blank + template


def _is_tokenizer(option):
  """Returns whether an option is what a tokenizer is loaded from."""
  if option.startswith(tokenizer_lib.GGUF):
    return True
  path = paths.as_path(os.path.expanduser(option))
  return paths.exists(path / 'tokenizer.json') or (
      path.name == 'tokenizer.json' and paths.exists(path))


def _read(path, named):
  """Returns the content of a template's file."""
  path = paths.as_path(os.path.expanduser(path))
  if not paths.exists(path):
    raise checks.ConfigError(
        f'{_OPTION} must be a template, its file, or a name that the tokenizer '
        f'gives to one; got {str(path)!r}. '
        f'{checks.suggest(str(path), named)}')
  try:
    return paths.read(path).decode()
  except (OSError, UnicodeDecodeError) as err:
    raise checks.DataError(
        f'{str(path)!r} must be readable UTF-8; got {checks.one_line(err)}. '
        'Restore the file.') from err
