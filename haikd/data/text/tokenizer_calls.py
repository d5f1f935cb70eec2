"""Calls of the package `tokenizers`, which end and whose errors are one line.

A tokenizer comes with a model, from somebody else. Its file may make the
package panic, which is a `BaseException`, and its regular expressions may take
any time on a text.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import os
import sys
import tempfile
import threading
from typing import Any, TypeVar

from haikd.core import checks

_Result = TypeVar('_Result')

# What a call may take: a tenth of the usual speed, and something for the start.
_SECONDS = 30.0
_CHARACTERS_PER_SECOND = 20_000

_PROBE = 'a 1'

# Ids below it; the largest vocabularies have a million.
_MOST_TOKENS = 2**24
# Not the package's: somebody wants the process to end.
_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit)


def load(definition: Mapping[str, Any], source: str) -> Any:
  """Returns a `tokenizers.Tokenizer`.

  Args:
    definition: the content of `tokenizer.json`.
    source: the file it comes from, for messages.

  Raises:
    DataError: a definition that the package refuses, or it is not installed.
  """
  try:
    import tokenizers
  except ImportError as err:
    raise checks.DataError(
        'tokenizers must be installed for data sets of texts; got '
        f"{checks.one_line(err)}. Run `pip install 'haikd[text]'`.") from err
  try:
    with _without_reports():
      loaded = tokenizers.Tokenizer.from_str(
          json.dumps(definition, ensure_ascii=False))
      with contextlib.suppress(Exception):  # Such as a word without a token.
        loaded.encode(_PROBE)  # Much that is wrong panics only here.
  except _OURS:
    raise
  except BaseException as err:  # The package raises no narrower type.
    raise checks.DataError(
        f'{source} must hold a tokenizer that the package tokenizers reads; '
        f'got {checks.one_line(err)}. Update the package, or restore the '
        'file.') from err
  largest = max(loaded.get_vocab().values(), default=-1)
  if largest >= _MOST_TOKENS:
    raise checks.DataError(
        f'{source} must have ids below {_MOST_TOKENS}, since each takes a row '
        f'of a network; got {largest}. Restore the file.')
  return loaded


def limited(call: Callable[[], _Result], characters: int,
            source: str) -> _Result:
  """Returns what a call of the package returns, if it does so in time.

  The package cannot be interrupted, but it does not keep other threads from
  running. So a call has a thread of its own, which is left behind if it is
  late.

  Args:
    call: the call.
    characters: of its texts, which the time that it may take depends on.
    source: the tokenizer's file, for messages.

  Raises:
    DataError: it takes too long, or the package fails.
  """
  results: list[_Result] = []
  errors: list[BaseException] = []

  def run():
    try:
      results.append(call())
    except BaseException as err:  # A panic is one.
      errors.append(err)

  seconds = _SECONDS + characters / _CHARACTERS_PER_SECOND
  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(seconds)
  if thread.is_alive():
    raise checks.DataError(
        f'{source} must tokenise {characters} characters of text in '
        f'{seconds:.0f} seconds; got no end. Its regular expressions may take '
        'for ever on them: use the tokenizer of another model, or break long '
        'texts into lines.')
  if errors:
    raise checks.DataError(
        f'{source} must tokenise any text; got '
        f'{checks.describe(errors[0])}. Use the tokenizer of another model, or '
        'break long texts into lines.') from errors[0]
  return results[0]


@contextlib.contextmanager
def _without_reports() -> Iterator[None]:
  """Keeps a panic inside from writing its report to standard error.

  Nothing else is lost: without a panic it is written there at the end.
  """
  if sys.stderr is not None:
    sys.stderr.flush()
  with tempfile.TemporaryFile() as kept:
    error = os.dup(2)
    os.dup2(kept.fileno(), 2)
    try:
      yield
      kept.seek(0)
      os.write(error, kept.read())
    finally:
      os.dup2(error, 2)
      os.close(error)
