"""Prompt log-probabilities of `/v1/completions`, as vLLM gives them.

A prompt of token ids goes out with `prompt_logprobs`, k, and comes back with an
entry for each of its tokens: None for the first, and for each other one the k
largest log-probabilities of what may stand there, and its own besides, by id:

  {"choices": [{"prompt_token_ids": [5, 7], "prompt_logprobs": [None,
      {"7": {"logprob": -0.5, "rank": 1, "decoded_token": " a"}, …}]}]}
"""

from collections.abc import Mapping, Sequence
import hashlib
from typing import NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.served import client as client_lib

FLAG = client_lib.FLAG

_MODELS, _COMPLETIONS = '/v1/models', '/v1/completions'
_ROUNDING = 1e-3  # By which a sum of probabilities may exceed 1.
_NEEDED = ('vLLM gives them; other programs name tokens by their text, or give '
           'none of a prompt.')


class Model(NamedTuple):
  """What a server says of a model.

  Attributes:
    name: that requests are sent with.
    root: what it was loaded from; '' where the server does not say it.
    max_length: tokens of a prompt and its continuation; None likewise.
  """

  name: str
  root: str
  max_length: Optional[int]

  @property
  def identity(self) -> str:
    """A hash of what says which model it is."""
    return hashlib.sha256(f'{self.name}\n{self.root}'.encode()).hexdigest()


class Predictions(NamedTuple):
  """What a model predicts after each token of a prompt but the last.

  Attributes:
    ids: int32 `[P, k]`, the most likely tokens, the likeliest first.
    log_probs: float32 `[P, k]`, in nats.
    texts: texts of tokens, by id, where they are wanted and given.
  """

  ids: np.ndarray
  log_probs: np.ndarray
  texts: Mapping[int, str]


def find_model(client: client_lib.Client, name: Optional[str]) -> Model:
  """Returns the model of a server.

  Args:
    client: asks it.
    name: of the model; None for the only one.

  Raises:
    ConfigError: no such model, or several without a name.
    DataError: as `Client.get`.
  """

  def read(answer):
    listed = answer.get('data') if isinstance(answer, dict) else None
    if not isinstance(listed, list):
      raise client_lib.Incomplete('a list without models')
    return {card['id']: card for card in listed
            if isinstance(card, dict) and isinstance(card.get('id'), str)}

  models = client.get(_MODELS, read)
  if name is None and len(models) == 1:
    name, = models
  if name is None or name not in models:
    known = checks.abbreviate(sorted(models)) or 'none'
    raise checks.ConfigError(
        f'config.teacher.server.model must be a model of {client.url}; got '
        f'{name!r}, where it serves {known}. Set it to one of them.')
  card, length = models[name], models[name].get('max_model_len')
  return Model(name, str(card.get('root') or ''),
               length if isinstance(length, int) else None)


def predict(client: client_lib.Client, model: Model, tokens: Sequence[int],
            k: int, with_texts: bool = False) -> Predictions:
  """Returns what a model predicts after each token of a prompt but the last.

  Args:
    client: asks the server.
    model: of the server.
    tokens: N ids, two or more.
    k: how many of the largest log-probabilities.
    with_texts: whether the texts of tokens are wanted.

  Returns:
    Predictions of N - 1 positions.

  Raises:
    ConfigError: as `Client.post`.
    DataError: likewise; or the answer has other tokens than were sent, no
      prompt log-probabilities, or numbers that are none.
  """
  body = dict(
      model=model.name, prompt=list(tokens), max_tokens=1, temperature=1.0,
      prompt_logprobs=k, return_token_ids=True)
  return client.post(
      _COMPLETIONS, body,
      lambda answer: _read(client.url, answer, tokens, k, with_texts),
      f'vLLM gives {k} log-probabilities, config.teacher.records.k, if it is '
      f'started with --max-logprobs={k} or more.')


def _read(url, answer, tokens, k, with_texts) -> Predictions:
  """Returns what is in an answer; raises if it is not complete."""
  try:
    choice, = answer['choices']
    returned, given = map(choice.get, ('prompt_token_ids', 'prompt_logprobs'))
  except (AttributeError, KeyError, TypeError, ValueError) as err:
    raise client_lib.Incomplete('an answer without its one choice') from err
  if returned is not None and returned != list(tokens):
    raise checks.DataError(
        f'{FLAG} must take ids of tokens as they are sent; got {url}, which '
        f'has changed a prompt of {len(tokens)} tokens. Serve the model '
        'without what changes prompts.')
  if given is None:
    raise checks.DataError(
        f'{FLAG} must give prompt_logprobs of {_COMPLETIONS}; got {url}, whose '
        f'answer has none. {_NEEDED}')
  count = len(given) if isinstance(given, list) else 0
  if count != len(tokens):
    raise client_lib.Incomplete(
        f'the predictions of {count} tokens of a prompt of {len(tokens)}')
  rows, texts = [], dict[int, str]()
  for place, (token, entry) in enumerate(zip(tokens[1:], given[1:])):
    rows.append(_largest(place, token, entry, k))
    if with_texts:
      texts.update({int(name): value['decoded_token']
                    for name, value in entry.items()
                    if value.get('decoded_token') is not None})
  ids = np.array([row[0] for row in rows], np.int32)
  log_probs = np.array([row[1] for row in rows], np.float32)
  sums = np.exp(log_probs.astype(np.float64)).sum(-1)
  # NaN is not below either.
  if not (sums <= 1 + _ROUNDING).all():
    raise checks.DataError(
        f'{FLAG} must give log-probabilities at temperature 1; got {url}, whose'
        f' {k} largest probabilities of a token add up to {sums.max():.4g}. '
        'Start vLLM with --logprobs-mode=raw_logprobs, its default.')
  return Predictions(ids, log_probs, texts)


def _largest(place, token, entry, k):
  """Returns the k most likely ids of an entry, and their log-probabilities."""
  try:
    found = {int(name): float(value['logprob'])
             for name, value in entry.items()}
  except (AttributeError, KeyError, TypeError, ValueError):
    found = {}
  # The token's own shows that the entry is that of its place.
  if len(found) < k or token not in found:
    raise client_lib.Incomplete(
        f'{len(found)} log-probabilities of token {place + 1} of a prompt, '
        f'where {k} and its own must be there')
  chosen = sorted(found, key=lambda x: -found[x])[:k]
  return chosen, [found[x] for x in chosen]
