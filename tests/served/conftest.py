"""A small server that answers as vLLM does, and fails as it is told to."""

from http import server as http_server
import json
import threading
import time

import pytest


class Server:
  """What it has been asked, and how it answers.

  Attributes:
    predict: `tokens -> [N, V]` log-probabilities, of what follows each token.
    faults: what happens to the next requests for predictions, in turn.
    models: what it says of its models.
    key: that it wants, or None.
    asked: the bodies of requests for predictions.
    times: when they came.
    texts: of tokens, by id; None for none.
  """

  def __init__(self, predict):
    self.predict, self.faults, self.key, self.texts = predict, [], None, None
    self.models = [dict(id='tiny', root='/models/tiny', max_model_len=1000)]
    self.asked, self.times, self.url, self.open = [], [], '', 0
    self.most_open, self._lock = 0, threading.Lock()

  def answer(self, body):
    """Returns the answer to a request, complete."""
    tokens, k = body['prompt'], body['prompt_logprobs']
    log_probs = self.predict(tokens)
    entries = [None]
    for place, own in enumerate(tokens[1:]):
      row = log_probs[place]
      # As vLLM has it: the token's own first, then the largest.
      ids = [own, *(-row).argsort(kind='stable')[:k].tolist()]
      entries.append({str(x): dict(
          logprob=max(float(row[x]), -9999.0), rank=1,
          decoded_token=self.texts and self.texts[x]) for x in ids})
    return dict(choices=[dict(index=0, text='?', prompt_logprobs=entries,
                              prompt_token_ids=tokens)])

  def next_fault(self, body):
    """Notes a request; returns what is to happen to it."""
    with self._lock:
      self.asked.append(body)
      self.times.append(time.monotonic())
      self.open += 1
      self.most_open = max(self.most_open, self.open)
      return self.faults.pop(0) if self.faults else None

  def done(self):
    with self._lock:
      self.open -= 1


class _Quiet(http_server.ThreadingHTTPServer):
  """Says nothing of clients that are gone."""

  daemon_threads = True

  def handle_error(self, *unused):
    pass


class _Handler(http_server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *unused):
    pass

  def do_GET(self):
    self._send(200, dict(object='list', data=self.server.told.models))

  def do_POST(self):
    told = self.server.told
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    if told.key and self.headers['Authorization'] != f'Bearer {told.key}':
      sent = self.headers['Authorization']
      self._send(401, dict(error=dict(message=f'Incorrect key: {sent}')))
      return
    fault = told.next_fault(body)
    try:
      self._fail(fault, told, body)
    finally:
      told.done()

  def _fail(self, fault, told, body):
    if isinstance(fault, tuple):  # A status, headers and a message.
      status, headers, message = fault
      self._send(status, dict(error=dict(message=message)), headers)
    elif fault == 'drop':
      self.close_connection = True
    elif fault == 'slow':
      time.sleep(0.6)
      self._send(200, told.answer(body))
    elif fault == 'half':
      content = json.dumps(told.answer(body)).encode()
      self._head(200, len(content), {})
      self.wfile.write(content[:len(content) // 2])
      self.close_connection = True
    elif fault == 'text':
      self._head(200, 5, {})
      self.wfile.write(b'<htm>')
    elif callable(fault):  # Changes the answer.
      answer = told.answer(body)
      self._send(200, fault(answer) or answer)
    else:
      self._send(200, told.answer(body))

  def _send(self, status, content, headers=()):
    content = json.dumps(content).encode()
    self._head(status, len(content), dict(headers))
    self.wfile.write(content)

  def _head(self, status, length, headers):
    self.send_response(status)
    for name, value in {'Content-Length': str(length), **headers}.items():
      self.send_header(name, value)
    self.end_headers()


@pytest.fixture
def serve():
  """Returns a function that starts a server, given what predicts."""
  running = []

  def start(predict):
    told = Server(predict)
    server = _Quiet(('127.0.0.1', 0), _Handler)
    server.told = told
    told.url = f'http://127.0.0.1:{server.server_address[1]}'
    threading.Thread(target=server.serve_forever, args=(0.01,),
                     daemon=True).start()
    running.append(server)
    return told

  yield start
  for server in running:
    server.shutdown()
    server.server_close()
