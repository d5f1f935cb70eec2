"""Renders chats by a template of Jinja2, in a process of its own.

A chat template comes with a model, from somebody else, and may take any time
and memory: the operating system ends this process if a rendering does.
`chat_process` starts this file as a script. It imports nothing of haikd, and so
starts in a moment. Templates are rendered as transformers does it.
"""

from collections.abc import Callable, Iterator
import contextlib
import datetime
import functools
import json
import re
import resource
import signal
import sys
from typing import Any, NamedTuple, Optional

MOST_SECONDS = 1.0  # Of processor time, for one rendering.
MOST_CHARACTERS = 2**22  # That one rendering may write.
_MOST_BYTES = 2**30  # Of memory.

# What templates write for a message without reasoning.
_NO_THOUGHTS = re.compile(r'\s*<think>\s*</think>\s*')
_GENERATION = re.compile(r'{%[-+]?\s*generation\s*[-+]?%}')

Messages = list[dict[str, Any]]


class Refused(Exception):
  """A template or a chat that cannot be rendered, with the kind of error."""

  def __init__(self, kind: str, message: str):
    super().__init__(message)
    self.kind = kind


class Row(NamedTuple):
  """A chat as text, with the begin and end of each part that is learned."""

  text: str
  spans: list[tuple[int, int]]


class Renderer:
  """A compiled template.

  Attributes:
    is_marked: whether the template has `{% generation %}`.
    is_dated: whether it has asked for the time.

  Args:
    template: the template.
    variables: what it may use besides the messages, such as `bos_token`.
    seconds: the processor time after which a rendering ends the process.

  Raises:
    Refused: the template is malformed.
  """

  def __init__(self, template: str, variables: dict[str, Any], *,
               seconds: Optional[float] = None):
    self.is_marked = bool(_GENERATION.search(template))
    self.is_dated = False
    self._variables = variables
    self._written = 0
    self._marks: list[tuple[int, str]] = []
    self._seconds = seconds
    try:
      with _time_limit(seconds):
        self._template = self._environment().from_string(template)
    except MemoryError:
      raise
    except Exception as err:  # Jinja2 may raise anything.
      line = getattr(err, 'lineno', '?')
      raise Refused('template', f'{err} (line {line})') from err

  def render(self, messages: Messages, *, prompt: bool = False) -> Row:
    """Returns messages as text; its spans are those in `{% generation %}`.

    Args:
      messages: the messages.
      prompt: whether to end with what an answer begins with.

    Raises:
      Refused: the template cannot render the messages.
    """
    self._written, self._marks = 0, []
    variables = dict(self._variables, messages=messages, tools=None,
                     documents=None, add_generation_prompt=prompt)
    pieces = []
    try:
      with _time_limit(self._seconds):
        for piece in self._template.generate(variables):
          pieces.append(piece)
          self._written += len(piece)
          if self._written > MOST_CHARACTERS:
            raise Refused('size', f'over {MOST_CHARACTERS:,} characters')
    except (Refused, MemoryError):
      raise
    except Exception as err:  # A template may raise anything.
      raise Refused('chat', str(err) or type(err).__name__) from err
    text = ''.join(pieces)
    if any(not text.startswith(part, start) for start, part in self._marks):
      raise Refused('buffered', 'in a macro, a filter or a set block')
    return Row(text, [(start, start + len(part))
                      for start, part in self._marks])

  def _environment(self):
    """Returns the environment that transformers gives to templates."""
    import jinja2
    from jinja2 import ext
    from jinja2 import sandbox

    renderer = self

    class Generation(ext.Extension):
      """Marks what is in `{% generation %}`, without changing it."""

      tags = {'generation'}

      def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',),
                                       drop_needle=True)
        return jinja2.nodes.CallBlock(
            self.call_method('_mark'), [], [], body).set_lineno(line)

      def _mark(self, caller):
        text = caller()
        renderer._marks.append((renderer._written, text))
        return text

    class Namespace(jinja2.utils.Namespace):
      """Keeps names that lead into Python's internals out."""

      def __init__(*args, **kwargs):  # As Jinja2's: `self` may be a name.
        self, *others = args
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*others, **kwargs).items():
          self[name] = value

      def __setitem__(self, name, value):
        if str(name).startswith('_'):
          raise ValueError(f'{name!r} begins with an underscore')
        super().__setitem__(name, value)

    class Dict:
      """What templates may do with the class dict."""

      __call__ = staticmethod(dict)
      fromkeys = staticmethod(dict.fromkeys)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[Generation, ext.loopcontrols])
    environment.filters['tojson'] = _to_json
    environment.globals.update(
        raise_exception=_raise, strftime_now=self._now, namespace=Namespace,
        dict=Dict())
    return environment

  def _now(self, form):
    self.is_dated = True
    return datetime.datetime.now().strftime(form)


def rows(renderer: Renderer, messages: Messages, first: int) -> list[Row]:
  """Returns a chat as text, with what of it is learned.

  An answer begins where the messages before it end, rendered with the prompt
  for an answer. A template may write an answer differently once the chat goes
  on, without its thoughts for instance. Then the chat up to this answer is a
  row of its own.

  Args:
    renderer: the template.
    messages: the messages.
    first: the index of the first that may be learned.

  Returns:
    The whole chat, if there is something to learn, and rows for the answers
    that it writes differently.

  Raises:
    Refused: the template cannot render the messages, or it does not tell where
      an answer begins.
  """
  whole = renderer.render(messages)
  if renderer.is_marked:
    return [Row(whole.text, _marked(renderer, messages, first, whole))]
  spans, apart = [], []
  for i in range(first, len(messages)):
    if messages[i]['role'] != 'assistant':
      continue
    before = renderer.render(messages[:i], prompt=True).text
    is_last = i == len(messages) - 1
    after = whole.text if is_last else renderer.render(messages[:i + 1]).text
    if not after.startswith(before):
      raise Refused('prompt', _difference(before, after))
    span = _without_no_thoughts(after, len(before), len(after))
    if whole.text.startswith(after):
      spans.append(span)
    else:
      apart.append(Row(after, [span]))
  return [*([Row(whole.text, spans)] if spans else []), *apart]


def _marked(renderer, messages, first, whole):
  """Returns the parts that a template marks itself."""
  start = 0
  if first:
    before = renderer.render(messages[:first]).text
    if not whole.text.startswith(before):
      raise Refused('prompt', _difference(before, whole.text))
    start = len(before)
  spans = [_without_no_thoughts(whole.text, begin, end)
           for begin, end in whole.spans if begin >= start]
  if not spans:
    raise Refused('marks', 'none')
  return spans


def _without_no_thoughts(text, begin, end):
  match = _NO_THOUGHTS.match(text, begin, end)
  return (match.end() if match else begin), end


def _difference(before, after):
  """Describes where the beginning of a text is not what it should be."""
  same = next((i for i, (a, b) in enumerate(zip(before, after)) if a != b),
              min(len(before), len(after)))
  return (f'{before[same:same + 40]!r} after {before[:same][-40:]!r} in one, '
          f'{after[same:same + 40]!r} in the other')


def _to_json(value, ensure_ascii=False, **options):
  """Unlike Jinja2's filter, does not escape characters for HTML."""
  return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message):
  raise ValueError(message)


@contextlib.contextmanager
def _time_limit(seconds: Optional[float]) -> Iterator[None]:
  """Ends the process if what is inside takes longer; None for no limit."""
  if seconds is None:
    yield
    return
  signal.signal(signal.SIGPROF, signal.SIG_DFL)
  signal.setitimer(signal.ITIMER_PROF, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(function: Callable[[], dict[str, Any]]) -> None:
  """Writes what a function returns, or why it was refused, as a line."""
  try:
    answer = function()
  except MemoryError:
    answer = dict(kind='memory', message=f'over {_MOST_BYTES >> 20} MiB')
  except Refused as err:
    answer = dict(kind=err.kind, message=str(err))
  print(json.dumps(answer), flush=True)


def main() -> None:
  """Reads a template and then chats from standard input, answers each."""
  start = json.loads(sys.stdin.readline())
  sys.path[:] = start['path']
  try:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
  except (OSError, ValueError):  # Not every system limits this.
    pass
  renderers = []

  def compile_template():
    renderers.append(Renderer(start['template'], start['variables'],
                              seconds=MOST_SECONDS))
    return {}

  def render(line):
    renderer, = renderers
    chat = json.loads(line)
    found = rows(renderer, chat['messages'], chat['first'])
    return dict(rows=found, is_dated=renderer.is_dated)

  _answer(compile_template)
  for line in sys.stdin:
    _answer(functools.partial(render, line))


if __name__ == '__main__':
  main()
