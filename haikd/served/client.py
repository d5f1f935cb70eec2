"""Asks a server that speaks JSON, many requests at once.

What may pass is tried again, later each time: connections that are refused or
cut, timeouts, answers that are not complete, and the statuses of a server that
is busy or restarts. One that asks for time gets it, from all requests alike.
The key is sent, and never said: no message and no file holds it.
"""

from collections.abc import Callable
import contextlib
import email.utils
import http.client
import json
import os
import random
import socket
import threading
import time
from typing import Any, Optional, TypeVar
import urllib.parse

from haikd.core import checks

FLAG = '--server'
KEY = 'HAIKD_SERVER_KEY'  # Environment variable with the key, if one is needed.

T = TypeVar('T')

_TRIES = 8
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # Seconds; each try doubles it.
_CONNECT = 30.0  # Seconds to be connected in.
_LONGEST_WAIT = 300.0  # Seconds that a server may ask for.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
_REFUSED = (401, 403)
_SHOWN = 200  # Characters of a server's message.
_CHUNK = 2**16


class Incomplete(ValueError):
  """An answer that lacks something, and may be complete next time."""


class _Passing(Exception):
  """What may pass, with the seconds that the server asks for, or None."""

  def __init__(self, message: str, wait: Optional[float] = None):
    super().__init__(message)
    self.wait = wait


class Client:
  """Asks one server; its methods may be called from several threads.

  Attributes:
    url: of the server, without a slash at its end.

  Args:
    url: as http://host:port or https://host, with a path or without.
    timeout: seconds that a request may take.

  Raises:
    ConfigError: another URL, or a key that no header can hold.
  """

  def __init__(self, url: str, timeout: float):
    # Clients of OpenAI are given an address that ends so.
    self.url = url.rstrip('/').removesuffix('/v1')
    parts = _split(self.url)
    self._secure, self._host = parts.scheme == 'https', parts.hostname
    self._port, self._path = parts.port, parts.path
    self._timeout = timeout
    self._key = os.environ.get(KEY, '').strip()
    if not (self._key.isascii() and self._key.isprintable()):
      raise checks.ConfigError(
          f'{KEY} must hold the printable ASCII characters of a key; got '
          'others. Set it again.')
    self._local = threading.local()
    self._connections: set[http.client.HTTPConnection] = set()
    self._stopped = threading.Event()
    self._open_at = 0.0  # No request starts before.

  def stop(self) -> None:
    """Ends all requests and all waiting: what is not answered yet raises."""
    self._stopped.set()
    for connection in self._connections.copy():
      if connection.sock is not None:
        with contextlib.suppress(OSError):
          connection.sock.shutdown(socket.SHUT_RDWR)

  def get(self, path: str, read: Callable[[Any], T]) -> T:
    """Returns what `read` makes of an answer; as `post`."""
    return self._ask('GET', path, None, read, '')

  def post(self, path: str, body: Any, read: Callable[[Any], T],
           remedy: str) -> T:
    """Returns what `read` makes of an answer.

    Args:
      path: below the URL, from its slash.
      body: what JSON holds.
      read: takes the decoded answer; raises Incomplete for one to try again.
      remedy: what to do if the server refuses the request.

    Raises:
      ConfigError: a key that the server refuses, or none.
      DataError: the server refuses the request, or gives no complete answer.
    """
    return self._ask('POST', path, json.dumps(body).encode(), read, remedy)

  def _ask(self, method, path, body, read, remedy):
    last = ''
    for number in range(_TRIES):
      if number:
        delay = min(_FIRST_DELAY * 2**(number - 1), _LONGEST_DELAY)
        self._sleep(delay * random.uniform(0.5, 1.0))
      self._sleep(self._open_at - time.monotonic())
      try:
        return read(self._once(method, path, body, remedy))
      except _Passing as err:
        last = checks.one_line(err)
        if err.wait is not None:
          self._open_at = max(self._open_at, time.monotonic() + err.wait)
      except Incomplete as err:
        last = checks.one_line(err)
    raise checks.DataError(
        f'{FLAG} must be a server that answers; got {self.url}{path}, and in '
        f'{_TRIES} tries no complete answer, at last {last}. Once it runs, '
        'start this again: complete shards are kept.')

  def _once(self, method, path, body, remedy):
    """Returns the decoded answer of one try."""
    headers = {'Accept': 'application/json'}
    if body is not None:
      headers['Content-Type'] = 'application/json'
    if self._key:
      headers['Authorization'] = f'Bearer {self._key}'
    deadline = time.monotonic() + self._timeout
    try:
      connection = self._connection()
      connection.request(method, self._path + path, body, headers)
      response = connection.getresponse()
      content = self._read(response, deadline)
    except (OSError, http.client.HTTPException) as err:
      self._drop()
      raise _Passing(self._shown(checks.describe(err))) from err
    if response.will_close:
      self._drop()
    if response.status != 200:
      raise self._refused(path, response, content, remedy)
    try:
      return json.loads(content)
    except ValueError as err:
      raise _Passing(f'an answer that is no JSON ({len(content)} bytes)'
                     ) from err

  def _connection(self):
    """Returns the connection of this thread, which stays open."""
    connection = getattr(self._local, 'connection', None)
    if connection is None:
      make = (http.client.HTTPSConnection if self._secure else
              http.client.HTTPConnection)
      connection = make(self._host, self._port,
                        timeout=min(_CONNECT, self._timeout))
      connection.connect()
      connection.sock.settimeout(self._timeout)
      self._local.connection = connection
      self._connections.add(connection)
      if self._stopped.is_set():  # While it was connected.
        raise checks.StoppedError('stopped.')
    return connection

  def _drop(self):
    connection = getattr(self._local, 'connection', None)
    if connection is not None:
      self._connections.discard(connection)
      self._local.connection = None
      connection.close()

  def _read(self, response, deadline):
    """Returns a body; raises if it is cut short, or takes too long."""
    parts = []
    while part := response.read1(_CHUNK):
      parts.append(part)
      if time.monotonic() > deadline:
        raise TimeoutError(f'no end within {self._timeout:g} s')
    if response.length:  # So many bytes are missing.
      raise http.client.IncompleteRead(b'', response.length)
    response.close()  # Else the connection takes no other request.
    return b''.join(parts)

  def _refused(self, path, response, content, remedy):
    """Returns the error of another status than 200."""
    status = response.status
    said = self._shown(_message(content) or response.reason)
    answer = f'{status} ({said})'
    if status in _PASSING:
      return _Passing(answer, _seconds(response.getheader('Retry-After')))
    if status in _REFUSED:
      got = 'one that is refused' if self._key else 'none'
      return checks.ConfigError(
          f'{KEY} must hold a key that {self.url} takes; got {got}, {answer}. '
          'Set that environment variable.')
    return checks.DataError(
        f'{FLAG} must be a server that takes this request; got {self.url}{path}'
        f', which answers {answer}. {remedy}'.rstrip())

  def _shown(self, text):
    """Returns a text on a line, cut, without the key."""
    if self._key:
      text = text.replace(self._key, '…')
    line = ' '.join(text.split())
    return line if len(line) <= _SHOWN else f'{line[:_SHOWN]}…'

  def _sleep(self, seconds):
    if self._stopped.wait(max(seconds, 0.0)):
      raise checks.StoppedError('stopped.')


def _split(url: str) -> urllib.parse.SplitResult:
  """Returns the parts of a URL of a server."""
  if any(sign in url for sign in '@?#'):  # It may hold a password.
    raise checks.ConfigError(
        f'{FLAG} must be an address alone, as http://host:port; got one with a '
        f'user, a query or a fragment. A key is set as {KEY}.')
  try:
    parts = urllib.parse.urlsplit(url)
    is_address = bool(parts.scheme in ('http', 'https') and parts.hostname and
                      parts.port != 0)
  except ValueError:  # Another port than a number.
    is_address = False
  if not is_address:
    raise checks.ConfigError(
        f'{FLAG} must be the address of a server, as http://host:port; got '
        f'{url!r}.')
  return parts


def _message(content: bytes) -> str:
  """Returns what a server says of an error, which has several forms."""
  text = content.decode(errors='replace')
  try:
    answer = json.loads(text)
  except ValueError:
    return text
  for name in ('error', 'message', 'detail'):
    if isinstance(answer, dict) and answer.get(name):
      answer = answer[name]
  return answer if isinstance(answer, str) else text


def _seconds(header: Optional[str]) -> Optional[float]:
  """Returns the seconds of a Retry-After, which may be a date; None without."""
  if header is None:
    return None
  try:
    seconds = float(header)
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(header)
    except ValueError:
      return None
    seconds = date.timestamp() - time.time()
  return min(max(seconds, 0.0), _LONGEST_WAIT)
