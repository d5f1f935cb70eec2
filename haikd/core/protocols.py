"""The signatures of what users register."""

from typing import Protocol

from haikd.core import base


class Loss(Protocol):
  """The signature of a function that `register_loss` takes."""

  def __call__(self, student: base.Array, teacher: base.Array, *,
               mask: base.Array, **options) -> base.LossSum:
    """Compares aligned arrays where `mask` is true.

    A loss that needs labels has a parameter `labels`.
    """


class Model(Protocol):
  """The signature of a Haiku function that `register_model` takes."""

  def __call__(self, inputs: base.ArrayTree, *, is_training: bool,
               **options) -> base.Output:
    """Returns logits `[B, V]` or `[B, N, V]`, or an Embedding.

    It runs inside a Haiku transform. A model that masks padding itself has a
    parameter `mask`; one that needs the data's number of classes has a
    parameter `num_classes`.
    """


class Aligner(Protocol):
  """The signature of a Haiku function that `register_aligner` takes."""

  def __call__(self, student: base.Array, teacher: base.Array, *,
               mask: base.Array, on: str, **options) -> base.Pair:
    """Brings one layer of the two networks to one shape."""
