"""How many bytes of a text the tokens of byte-level BPE stand for."""

import functools
from typing import Any, Optional

import numpy as np

from haikd.data.text import tokenizer as tokenizer_lib


@functools.lru_cache(maxsize=4)
def sizes(tokenizer: tokenizer_lib.Tokenizer) -> Optional[np.ndarray]:
  """Returns the number of bytes of each token.

  The tokens of a text are its bytes, in order, wherever their sizes add up to
  its size. (They do not if a token is unknown or takes blanks beside it away.)

  Args:
    tokenizer: any tokenizer.

  Returns:
    int `[V]`; None if it is not byte-level BPE, or changes texts before.
  """
  definition = tokenizer.definition
  model = definition.get('model', {})
  if (model.get('type') != 'BPE' or definition.get('normalizer') is not None or
      model.get('continuing_subword_prefix') or
      model.get('end_of_word_suffix') or model.get('byte_fallback') or
      not _ends_in_bytes(definition.get('pre_tokenizer'))):
    return None
  found = np.zeros(tokenizer.size, int)
  for token, index in model['vocab'].items():
    found[index] = len(token)  # A character stands for a byte.
  for token in definition.get('added_tokens') or ():
    found[token['id']] = len(token['content'].encode())
  return found


def _ends_in_bytes(step: Any) -> bool:
  """Returns whether a pre-tokenizer turns what it has cut into bytes."""
  if step is None:
    return False
  if step['type'] == 'Sequence':
    return bool(step['pretokenizers']) and _ends_in_bytes(
        step['pretokenizers'][-1])
  return step['type'] == 'ByteLevel' and not step.get('add_prefix_space', True)
