"""Sequences of tokens: which token a model must predict at which position."""

from typing import Optional

import numpy as np

from haikd.core import base
from haikd.data import spec as spec_lib


def next_token(
    tokens: np.ndarray,
    mask: np.ndarray,
    completion: Optional[np.ndarray] = None,
    segments: Optional[np.ndarray] = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Aligns labels to logits: position i predicts token i + 1.

  This is the one place where sequences are shifted; losses and models never do
  it. A position counts if the token after it is real (and, given `completion`,
  belongs to the completion). With a prompt of 4 tokens and a completion of 3,
  the positions 3, 4 and 5 count.

  Args:
    tokens: `[..., N]` integers.
    mask: `[..., N]` bool, true where a token is real.
    completion: `[..., N]` bool, true where a token is to be learned; None if
      every real token is.
    segments: `[..., N]` integers, the document of its row that a token belongs
      to. The last token of a document does not predict the first of the next.
      None if a row is one document.

  Returns:
    `labels`, `[..., N]` int32 with -100 where a position does not count, and
    `target_mask`, `[..., N]` bool, true where it does.
  """
  learned = mask if completion is None else mask & completion
  target_mask = np.zeros_like(mask)
  target_mask[..., :-1] = mask[..., :-1] & learned[..., 1:]
  if segments is not None:
    target_mask[..., :-1] &= segments[..., :-1] == segments[..., 1:]
  ignored = np.int32(base.IGNORED_LABEL)
  labels = np.full(tokens.shape, ignored)
  labels[..., :-1] = tokens[..., 1:]
  return np.where(target_mask, labels, ignored), target_mask


def columns(length: int) -> dict[str, spec_lib.Column]:
  """Describes the columns of a sequence with its mask and labels.

  Args:
    length: N.

  Returns:
    The shapes, `[N]`, and dtypes of `tokens`, `mask`, `label` and
    `target_mask`.
  """
  dtypes = dict(tokens=np.int32, mask=np.bool_, label=np.int32,
                target_mask=np.bool_)
  return {key: spec_lib.Column((length,), dtype)
          for key, dtype in dtypes.items()}
