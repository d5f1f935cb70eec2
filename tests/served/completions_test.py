"""A server is asked until it answers, and what it answers is checked."""

import email.utils
import http.client
import socket
import threading
import time
import types

import numpy as np
import pytest

from haikd.core import base
from haikd.core import checks
from haikd.run import served
from haikd.served import client as client_lib
from haikd.served import completions
from haikd.served import prompts
from haikd.teacher_records import top_k

V, TOKENS = 9, [3, 1, 4, 1, 5]
KEY = 'sk-not-to-be-seen'


def table(tokens):
  """Log-probabilities of what follows each token: a row for each token."""
  logits = np.random.default_rng(0).normal(size=(V, V))
  rows = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return rows[tokens]


@pytest.fixture
def server(serve, monkeypatch):
  monkeypatch.setattr(client_lib, '_FIRST_DELAY', 0.01)
  monkeypatch.delenv(client_lib.KEY, raising=False)
  return serve(table)


def ask(server, k=4, timeout=5.0, tokens=TOKENS):
  client = client_lib.Client(server.url, timeout)
  model = completions.find_model(client, None)
  return completions.predict(client, model, tokens, k)


def check_right(predicted, k=4):
  expected = table(TOKENS)[:-1]
  np.testing.assert_array_equal(
      predicted.ids, np.argsort(-expected, axis=-1)[:, :k])
  np.testing.assert_allclose(
      predicted.log_probs, -np.sort(-expected, axis=-1)[:, :k], rtol=1e-6)


def test_predictions_are_those_after_each_token_but_the_last(server):
  check_right(ask(server))
  request, = server.asked
  assert request['prompt'] == TOKENS and request['prompt_logprobs'] == 4
  assert request['model'] == 'tiny' and request['max_tokens'] == 1
  check_right(ask(server, k=V), k=V)


def without_own(answer):
  """Takes a token's own away where it is not one of the largest."""
  entries = answer['choices'][0]['prompt_logprobs']
  place = next(i for i, x in enumerate(entries) if x and len(x) == 5)
  del entries[place][str(TOKENS[place])]


def short(answer):
  answer['choices'][0]['prompt_logprobs'].pop()


def hole(answer):
  answer['choices'][0]['prompt_logprobs'][3] = None


def few(answer):
  entry = answer['choices'][0]['prompt_logprobs'][3]
  del entry[next(x for x in entry if x != '1')]
  if len(entry) > 3:  # The token's own may be among the largest.
    del entry[next(x for x in entry if x != '1')]


PASSING = dict(
    busy=(429, {'Retry-After': '0'}, 'slow down'), broken=(500, {}, 'oh'),
    restarts=(503, {}, 'no backend'), gateway=(502, {}, ''), drop='drop',
    half='half', text='text', slow='slow', without_own=without_own, short=short,
    hole=hole, few=few, nothing=lambda answer: dict(object='error'))


@pytest.mark.parametrize('fault', PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(fault, server):
  server.faults = [fault, fault]
  check_right(ask(server, timeout=0.3 if fault == 'slow' else 5.0))
  assert len(server.asked) == 3


def refuse(change):
  """Returns a fault that changes each entry of an answer."""

  def fault(answer):
    for entry in answer['choices'][0]['prompt_logprobs'][1:]:
      for value in entry.values():
        value['logprob'] = change(value['logprob'])

  return fault


def other_tokens(answer):
  answer['choices'][0]['prompt_token_ids'] = [0, *TOKENS]


def no_logprobs(answer):
  answer['choices'][0]['prompt_logprobs'] = None


@pytest.mark.parametrize('fault,message', [
    ((400, {}, 'Requested prompt logprobs of 4, which is greater than max '
      'allowed: 2'), r'answers 400 \(Requested .* allowed: 2\). vLLM gives 4 .*'
     '--max-logprobs=4'),
    ((404, {}, 'The model `x` does not exist.'), 'answers 404'),
    ((307, {'Location': 'http://other/'}, ''), 'answers 307'),
    (other_tokens, 'must take ids of tokens as they are sent'),
    (no_logprobs, 'must give prompt_logprobs of /v1/completions; got http'),
    (refuse(lambda x: x + 9), r'log-probabilities at temperature 1; .* add up'),
    (refuse(lambda x: float('nan')), 'add up to nan'),
])
def test_what_cannot_pass_ends_at_once(fault, message, server):
  server.faults = [fault] * 20
  with pytest.raises(checks.DataError, match=message) as error:
    ask(server)
  assert len(server.asked) == 1 and '\n' not in str(error.value)


@pytest.mark.parametrize('fault,last', [
    ((503, {}, 'loading the model'), r'503 \(loading the model\)'),
    ('drop', 'RemoteDisconnected'), ('half', 'IncompleteRead'),
    (short, 'predictions of 4 tokens of a prompt of 5')])
def test_what_does_not_pass_ends_in_a_line(fault, last, server):
  server.faults = [fault] * 20
  with pytest.raises(checks.DataError, match=f'in 8 tries .* at last .*{last}'):
    ask(server)
  assert len(server.asked) == 8


def test_waits_grow_with_jitter_and_as_long_as_the_server_asks(
    server, monkeypatch):
  waits = []
  monkeypatch.setattr(client_lib, '_FIRST_DELAY', 1.0)
  monkeypatch.setattr(client_lib, '_LONGEST_DELAY', 20.0)
  monkeypatch.setattr(client_lib.Client, '_sleep',
                      lambda self, seconds: waits.append(seconds))
  server.faults = [(429, {}, '')] * 7
  check_right(ask(server))
  # Each request waits until the server is open: that for the model, the first,
  # and each further one after a delay of its own.
  delays = waits[2::2]
  assert len(delays) == 7 and len(set(delays)) == 7
  for longest, delay in zip((1, 2, 4, 8, 16, 20, 20), delays):
    assert longest / 2 <= delay <= longest


@pytest.mark.parametrize('header,seconds', [
    ('7', 7), ('2.5', 2.5), ('-3', 0), ('1e9', 300), ('soon', None),
    (email.utils.formatdate(time.time() + 1e5, usegmt=True), 300),
    (email.utils.formatdate(0, usegmt=True), 0)])
def test_retry_after_is_seconds_or_a_date(header, seconds):
  assert client_lib._seconds(header) == seconds


def test_all_requests_wait_where_one_is_told_to(server):
  client = client_lib.Client(server.url, 5.0)
  model = completions.find_model(client, None)
  server.faults = [(429, {'Retry-After': '0.3'}, '')]
  start = time.monotonic()
  completions.predict(client, model, TOKENS, 4)
  assert time.monotonic() - start > 0.3
  client._open_at = time.monotonic() + 0.3
  start = time.monotonic()
  completions.predict(client, model, TOKENS, 4)
  assert time.monotonic() - start > 0.29


def test_refused_connection_and_silent_server_end_in_a_line(monkeypatch):
  monkeypatch.setattr(client_lib, '_FIRST_DELAY', 0.001)
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = free.getsockname()
    url = 'http://%s:%s' % address
    with pytest.raises(checks.DataError, match='ConnectionRefusedError'):
      completions.find_model(client_lib.Client(url, 5.0), None)
    free.listen()
    with pytest.raises(checks.DataError, match='TimeoutError'):
      completions.find_model(client_lib.Client(url, 0.02), None)


def test_what_is_being_connected_asks_nothing_after_the_end(
    server, monkeypatch):
  connecting, go_on = threading.Event(), threading.Event()
  connect = http.client.HTTPConnection.connect

  def slowly(connection):
    connecting.set()
    assert go_on.wait(20)
    connect(connection)

  monkeypatch.setattr(http.client.HTTPConnection, 'connect', slowly)
  client = client_lib.Client(server.url, 5.0)
  codec = top_k.Codec(classes=V, k=4, bits=16, temperature=1.0)
  data = types.SimpleNamespace(text_of=lambda role: None)
  model = completions.Model('tiny', None, None)
  with served.Predictor(client, model, codec, data, 2, 2) as predictor:
    asked = predictor._pool.submit(
        completions.predict, client, model, TOKENS, 4, False)
    assert connecting.wait(20)
  assert not asked.done()  # The end has not waited for it.
  go_on.set()
  with pytest.raises(checks.StoppedError):
    asked.result(20)
  assert not server.asked


@pytest.mark.parametrize('key', [KEY, None])
def test_key_is_sent_and_in_no_message(key, server, monkeypatch):
  server.key = KEY
  if key:
    monkeypatch.setenv(client_lib.KEY, f' {key}\n')
    check_right(ask(server))
    server.key = 'another'
  with pytest.raises(checks.ConfigError, match=client_lib.KEY) as error:
    ask(server)
  got = 'one that is refused, 401 .*Incorrect key: Bearer …' if key else 'none'
  assert error.match(f'got {got}') and KEY not in str(error.value)


def test_key_that_is_no_header_is_refused_without_being_shown(monkeypatch):
  monkeypatch.setenv(client_lib.KEY, f'{KEY}\nHost: x')
  with pytest.raises(checks.ConfigError, match='printable') as error:
    client_lib.Client('http://localhost', 1.0)
  assert KEY not in str(error.value)


@pytest.mark.parametrize('url', [
    'localhost:8000', 'ftp://host', 'http://', 'http://host:port', 'http://h:0',
    'http://user:secret@host', 'http://host/?key=secret', 'http://[::1'])
def test_other_addresses_are_refused(url):
  with pytest.raises(checks.ConfigError, match='^--server must be') as error:
    client_lib.Client(url, 1.0)
  assert 'secret' not in str(error.value)


def test_model_is_the_only_one_or_the_one_that_is_named(server):
  for url in (server.url, f'{server.url}/', f'{server.url}/v1'):
    client = client_lib.Client(url, 5.0)
    model = completions.find_model(client, None)
    assert model == ('tiny', '/models/tiny', 1000)
  server.models.append(dict(id='b'))
  assert completions.find_model(client, 'b') == ('b', '', None)
  assert len({model.identity, model._replace(root='').identity,
              model._replace(name='b').identity}) == 3
  for name in (None, 'c'):
    with pytest.raises(checks.ConfigError, match='serves b, tiny'):
      completions.find_model(client, name)


def packed():
  """A row of three documents with padding, and one of padding alone."""
  tokens = np.arange(20, dtype=np.int32).reshape(2, 10)
  segments = np.array([[1, 1, 1, 2, 3, 3, 3, 3, 0, 0], [0] * 10], np.int32)
  positions = np.array([[0, 1, 2, 0, 0, 1, 2, 3, 0, 0], [0] * 10], np.int32)
  target = np.zeros((2, 10), bool)
  target[0, [0, 1, 4, 5]] = True
  labels = np.where(target, tokens + 1, -100).astype(np.int32)
  return base.Batch(
      dict(tokens=tokens, segments=segments, positions=positions), segments > 0,
      labels=labels, target_mask=target)


def test_documents_are_prompts_up_to_the_last_token_that_counts():
  batch = packed()
  prompts.check_spec(batch)
  # The second document has one token, which predicts nothing; the last token of
  # the third is not predicted.
  assert list(prompts.cut(batch, batch.target_mask)) == [
      (0, 0, [0, 1, 2]), (0, 4, [4, 5, 6])]
  alone = batch._replace(inputs=batch.inputs['tokens'], mask=batch.mask | True)
  assert list(prompts.cut(alone, alone.target_mask)) == [
      (0, 0, [0, 1, 2, 3, 4, 5, 6])]


def change(name, place, value):
  batch = packed()
  array = batch.labels if name == 'labels' else batch.inputs[name]
  array[place] = value
  return batch


@pytest.mark.parametrize('batch,message', [
    (change('labels', (0, 4), 17), 'labels that are the next token'),
    (change('positions', (0, 5), 5), 'positions from 0'),
    (change('segments', (0, 3), 3)._replace(mask=np.array(
        [[True] * 4 + [False] + [True] * 5, [False] * 10])),
     'documents without padding'),
])
def test_rows_that_a_server_would_see_otherwise_are_refused(batch, message):
  with pytest.raises(checks.DataError, match=message):
    list(prompts.cut(batch, batch.target_mask))


def test_other_data_than_texts_is_refused():
  batch = packed()
  for other in (batch._replace(labels=None),
                batch._replace(inputs=np.zeros((2, 4, 4, 1), np.float32)),
                batch._replace(inputs=dict(batch.inputs, types=batch.labels))):
    with pytest.raises(checks.ConfigError, match='texts whose next token'):
      prompts.check_spec(other)
