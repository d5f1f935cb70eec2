"""Messages of a chat: which are accepted, and how a template sees them."""

from collections.abc import Iterator, Mapping
import contextlib
import itertools
import json
from typing import Any, NamedTuple

from haikd.core import checks
from haikd.data.text import text_records

ASSISTANT = 'assistant'

_ROLES = ('system', 'developer', 'user', ASSISTANT)
# How ShareGPT names roles, in `dict(from='human', value='…')`.
_SENDERS = dict(human='user', user='user', gpt=ASSISTANT, chatgpt=ASSISTANT,
                assistant=ASSISTANT, model=ASSISTANT, system='system')
# Fields of a record that would change what a template writes.
_UNREAD = ('tools', 'documents', 'chat_template_kwargs')
# Fields of a message that belong to tools.
_TOOL_FIELDS = ('tool_calls', 'tool_call_id', 'function_call')
# Fields of a message with the reasoning before its content.
_REASONING = ('reasoning_content', 'thinking', 'reasoning')


class Fields(NamedTuple):
  """The fields of a record that hold messages.

  Attributes:
    messages: all messages; where a record has no such field,
    prompt: those that are not learned, and
    completion: those that follow.
  """

  messages: str
  prompt: str
  completion: str

  def column_groups(self) -> tuple[tuple[str, ...], ...]:
    """Returns the columns to read, as `text_files.Location` takes them."""
    # What is refused has to be read.
    unread = [names for size in range(len(_UNREAD), -1, -1)
              for names in itertools.combinations(_UNREAD, size)]
    groups = ((self.messages,), (self.prompt, self.completion))
    return tuple(group + names for group in groups for names in unread)


class Chat(NamedTuple):
  """The messages of a record.

  Attributes:
    messages: as a template sees them.
    first: the index of the first message that may be learned.
    place: the file and line, for errors.
  """

  messages: list[dict[str, Any]]
  first: int
  place: str


def read(record: text_records.Record, fields: Fields) -> Chat:
  """Returns the messages of a record.

  Args:
    record: the record.
    fields: where its messages are.

  Raises:
    DataError: messages are missing or malformed, there is something else than
      text, or nothing to learn.
  """
  for name in _UNREAD:
    if record.values.get(name):
      raise _error(record.place, f'have no {name!r}', record.values[name],
                   'Remove the field, or records that need it')
  if fields.messages in record.values or not {
      fields.prompt, fields.completion} <= {*record.values}:
    messages, first = list(_read_list(record, fields.messages)), 0
  else:
    messages = list(_read_list(record, fields.prompt))
    first = len(messages)
    messages += _read_list(record, fields.completion)
  roles = [message['role'] for message in messages]
  if ASSISTANT not in roles[first:]:
    raise _error(record.place, 'have a message of the assistant to learn',
                 f'the roles {roles}', 'Remove the record')
  return Chat(messages, first, record.place)


def _read_list(record: text_records.Record,
               field: str) -> Iterator[dict[str, Any]]:
  """Yields the messages in a field of a record."""
  value = _parse(text_records.value_of(record, field))
  if isinstance(value, str):
    raise _error(record.place, f'have a list of messages in {field!r}, or that '
                 'list as JSON', value, "config.data.name='completions' reads "
                 'prompts and completions that are texts')
  if not isinstance(value, (list, tuple)) or not value:
    raise _error(record.place, f'have a list of messages in {field!r}', value,
                 'Remove the record, or choose another field in '
                 'config.data.options')
  for number, message in enumerate(value, start=1):
    yield _read_message(message, f'message {number} of {field!r} in '
                        f'{record.place}')


def _parse(value: Any) -> Any:
  """Returns the value of a JSON text, as tables hold lists; else the value."""
  if isinstance(value, str) and value.lstrip().startswith('['):
    with contextlib.suppress(ValueError, RecursionError):
      return json.loads(value)
  return value


def _read_message(message: Any, place: str) -> dict[str, Any]:
  """Returns a message as transformers passes it to a template."""
  if not isinstance(message, Mapping):
    raise _error(place, "be dict(role='…', content='…')", message,
                 'Fix the record')
  # transformers drops what is None as well: templates would write 'None'.
  message = {key: value for key, value in message.items() if value is not None}
  if 'role' not in message and {'from', 'value'} <= {*message}:
    sender = message.pop('from')
    message = dict(message, role=_SENDERS.get(sender, sender),
                   content=message.pop('value'))
  role = message.get('role')
  if role not in _ROLES:
    got = f'role={role!r}' if 'role' in message else f'keys {[*message]}'
    raise _error(place, f'have a role of {", ".join(_ROLES)}', got,
                 'Rename the roles and keys')
  for name in _TOOL_FIELDS:
    if message.get(name):
      raise _error(place, f'have no {name!r}', message[name],
                   'Remove conversations with tools')
  if message.get('weight', 1) != 1:
    raise _error(place, 'have no weight but 1', message['weight'], 'Put '
                 "messages that are not learned into the field 'prompt', and "
                 "those that follow into 'completion'")
  message['content'] = _text(message.get('content'), place)
  reasoning = next((message[name] for name in _REASONING if name in message),
                   None)
  if reasoning is None:
    return message
  # What templates know these by.
  return {'thinking': reasoning, **message, 'reasoning_content': reasoning}


def _text(content: Any, place: str) -> str:
  """Returns the text of a message, which may be in a list of one part."""
  if isinstance(content, (list, tuple)):
    parts = content
    if (len(parts) != 1 or not isinstance(parts[0], Mapping) or
        parts[0].get('type') != 'text'):
      kinds = [part.get('type') if isinstance(part, Mapping) else part
               for part in parts]
      raise _error(place, "have a text, or one part of type 'text'",
                   f'parts of type {kinds}', 'Join texts, and remove messages '
                   'with anything else')
    content = parts[0].get('text')
  if not isinstance(content, str):
    raise _error(place, 'have a text as content', content, 'Fix the record')
  return content


def _error(place, rule, value, remedy):
  """Returns the error '<place> must <rule>; got <value>. <remedy>.'."""
  value = value if isinstance(value, str) else repr(value)
  shown = value if len(value) <= 200 else f'{value[:200]}…'
  return checks.DataError(f'{place} must {rule}; got {shown}. {remedy}.')
