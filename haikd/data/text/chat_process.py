"""Chats as text, rendered by a chat template in a process of its own."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import re
import signal
import subprocess
import sys
from typing import Any, NamedTuple

from haikd.core import checks
from haikd.data.records import broken as broken_lib
from haikd.data.text import messages as messages_lib
from haikd.data.text import render_chats

_OLDEST = (3, 1, 6)  # Of Jinja2. There are ways out of older sandboxes.
_REMEDY = ('config.data.options.chat_template takes another template, or its '
           'file.')
_ANSWER = 'mark answers with {% generation %} and {% endgeneration %}.'

# What to say about an error in rendering, by its kind: the rule that a template
# or a chat breaks, and what to do.
_TEMPLATE_RULES = {
    'template': ('must be a template of Jinja2', _REMEDY),
    'time': (f'must render a chat in {render_chats.MOST_SECONDS:g} second',
             _REMEDY),
    'memory': ('must need little memory', _REMEDY),
    'size': ('must write short texts', _REMEDY),
    'prompt': ('must write the same before an answer as when it invites one',
               f'{_REMEDY} It may also {_ANSWER}'),
    'marks': ('must have {% generation %} around answers', _REMEDY),
    'buffered': ('must have {% generation %} at the top level', _REMEDY),
}
# Of these the kinds that other chats need not have.
_OF_CHAT = ('size', 'prompt', 'marks')


class RenderedChat(NamedTuple):
  """A chat as text.

  Attributes:
    rows: texts, and what to learn of them.
    is_dated: whether the texts have a date.
  """

  rows: list[render_chats.Row]
  is_dated: bool


class ChatProcess:
  """Renders chats by one template; made by `start`."""

  def __init__(self, process: subprocess.Popen, start: Mapping[str, Any]):
    self._process = process
    self._ask(json.dumps(start), 'its beginning')

  def render(self, chat: messages_lib.Chat) -> RenderedChat:
    """Returns a chat as text.

    Args:
      chat: the chat.

    Raises:
      DataError: the template cannot render it, or a field of a message is
        something else than JSON has.
    """
    try:
      question = json.dumps(dict(messages=chat.messages, first=chat.first))
    except TypeError:
      _check_fields(chat)
      raise
    answer = self._ask(question, chat.place)
    return RenderedChat(
        [render_chats.Row(text, spans) for text, spans in answer['rows']],
        answer['is_dated'])

  def _ask(self, question, place):
    """Returns the answer of the process; raises DataError if it refuses."""
    process = self._process
    try:
      print(question, file=process.stdin, flush=True)
      line = process.stdout.readline()
    except BrokenPipeError:
      line = ''
    answer = json.loads(line) if line else self._ended()
    if 'kind' in answer:
      raise _error(place=place, **answer)
    return answer

  def _ended(self):
    """Describes why the process has ended."""
    code = self._process.wait()
    return dict(kind='time' if code == -signal.SIGPROF else 'ended',
                message='more' if code == -signal.SIGPROF else
                f'exit code {code}')


@contextlib.contextmanager
def start(template: str, variables: Mapping[str, Any]) -> Iterator[ChatProcess]:
  """Starts a process that renders chats, which ends with the context.

  Args:
    template: the chat template.
    variables: what it may use besides the messages, such as `bos_token`.

  Yields:
    A ChatProcess.

  Raises:
    DataError: the template is malformed, or Jinja2 is missing.
  """
  _check_jinja2()
  # -P: the modules beside the script must not hide those of Python.
  process = subprocess.Popen(
      [sys.executable, '-P', render_chats.__file__], stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, encoding='ascii')
  try:
    yield ChatProcess(process, dict(
        path=sys.path, template=template, variables=dict(variables)))
  finally:
    process.kill()
    process.communicate()


def _check_jinja2():
  """Raises DataError unless Jinja2 is there, and its sandbox is closed."""
  try:
    import jinja2
    got = f'version {jinja2.__version__}'
    version = tuple(map(int, re.findall(r'\d+', jinja2.__version__)[:3]))
  except ImportError as err:
    got, version = checks.one_line(err), ()
  if version < _OLDEST:
    raise checks.DataError(
        f'jinja2 must be installed to render chats, 3.1.6 or newer; got {got}. '
        "Run `pip install 'haikd[text]'`.")


def _check_fields(chat):
  """Raises DataError for a field that the process cannot be sent."""
  for number, message in enumerate(chat.messages, start=1):
    for field, value in message.items():
      try:
        json.dumps(value)
      except TypeError as err:
        raise checks.DataError(
            f'message {number} in {chat.place} must have numbers and texts in '
            f'its fields; got {value!r} in {field!r}. Write it as text, or '
            'remove the field.') from err


def _error(kind, message, place):
  """Returns the error of a template or chat."""
  if kind == 'chat':
    return checks.DataError(
        f'{place} must suit the chat template; got the error '
        f'{" ".join(message.split())!r}. Change or remove the messages; or '
        f'{_REMEDY}')
  if kind in _TEMPLATE_RULES:
    rule, remedy = _TEMPLATE_RULES[kind]
    of_chat = kind in _OF_CHAT
    return (checks.DataError if of_chat else broken_lib.NotOfRecordError)(
        f'the chat template {rule}; got {message} for {place}. {remedy}')
  return broken_lib.NotOfRecordError(
      f'the process that renders chats must not end; got {message} for '
      f'{place}. Run it again; it may have been killed for its memory.')
