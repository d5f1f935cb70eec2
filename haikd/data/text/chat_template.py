"""Which chat template a data set uses."""

from collections.abc import Mapping
import os
from typing import Any, Optional

from haikd.core import checks
from haikd.data.text import framing
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.storage import paths

_OPTION = 'config.data.options.chat_template'
_MOST_CHARACTERS = 2**18  # Of a template.


def choose(tokenizer: tokenizer_lib.Tokenizer,
           option: Optional[str] = None) -> str:
  """Returns the chat template of a data set.

  Args:
    tokenizer: the tokenizer of the data.
    option: a template, its file, or the name of one of the tokenizer's; None
      for the tokenizer's only or default one.

  Raises:
    ConfigError: there is no such template.
    DataError: the file cannot be read, or a template is no text.
  """
  named = _templates(tokenizer)
  if option is None or option in named:
    template = named.get(option or 'default')
  elif '{{' in option or '{%' in option:
    template = option
  else:
    template = _read(option, named)
  if template is None and named:
    raise checks.ConfigError(
        f'{_OPTION} must name one of the templates of the tokenizer, of which '
        f"none is called 'default'; got None. {checks.suggest('', named)}")
  if template is None:
    raise checks.ConfigError(
        f'{_OPTION} must be a template or its file, since the tokenizer has '
        'none; got None. Take that of an instruct model with this tokenizer.')
  if not isinstance(template, str) or len(template) > _MOST_CHARACTERS:
    raise checks.DataError(
        f'the chat template must be a text of at most {_MOST_CHARACTERS:,} '
        f'characters; got {type(template).__name__}, {len(template):,}. Set '
        f'{_OPTION}.')
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


def _templates(tokenizer):
  """Returns `{name: template}` as transformers finds them in a folder."""
  if tokenizer.templates:
    return tokenizer.templates
  template = tokenizer.config.get('chat_template')
  if isinstance(template, list):
    return {each['name']: each['template'] for each in template}
  if isinstance(template, Mapping):
    return dict(template)
  return {} if template is None else dict(default=template)


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
