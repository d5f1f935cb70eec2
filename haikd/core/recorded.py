"""What is recorded of a teacher's predictions, as losses get it.

Every field has the axes of the positions in front: `[B]`, `[B, N]`, or `[R]` in
a chunk.
"""

from typing import Any, NamedTuple


class Sampled(NamedTuple):
  """An unbiased estimate of probabilities: most classes have 0.

  A class may be named several times; its weights then add up. The weights of a
  position sum to 1, and the expectation of the estimate is the prediction.

  Attributes:
    ids: int32 `[..., M]`, classes.
    weights: float32 `[..., M]`, their estimated probabilities.
    entropy: float32 `[...]`, of the full prediction, in nats.
  """

  ids: Any
  weights: Any
  entropy: Any


class TopK(NamedTuple):
  """The largest probabilities, and what all other classes have together.

  Attributes:
    ids: int32 `[..., K]`, distinct classes, the likeliest first.
    log_probs: float32 `[..., K]`, their log-probabilities.
    rest: float32 `[...]`, the log-probability of the other classes.
  """

  ids: Any
  log_probs: Any
  rest: Any


class Hidden(NamedTuple):
  """A hidden state in 8 bits, which is `scale * values`.

  Attributes:
    values: int8 `[..., D]`.
    scale: float32 `[...]`.
  """

  values: Any
  scale: Any


# What a loss may get in place of a teacher's logits. A hidden state becomes
# lazy logits before.
TARGETS = (Sampled, TopK)
