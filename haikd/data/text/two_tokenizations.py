"""Texts that teacher and student tokenize differently."""

from collections.abc import Callable, Mapping
from typing import Any, Optional, Union

from haikd.data import columns as columns_lib
from haikd.data import source
from haikd.data.text import text_prepared

_SHARED = ('label', 'target_mask')  # The keys that do not depend on tokens.


class TwoTokenizations:
  """A Source of texts in the teacher's tokens and in the student's.

  A text without any token in one of the two is masked in both.

  Attributes:
    num_classes: V, or None.
    class_names: the names of the classes, or None.
    text: the teacher's tokenizer.
    student_text: the student's.

  Args:
    teacher: the rows of all texts, in the teacher's tokens.
    student: the rows of the same texts, in the student's tokens.
  """

  def __init__(self, teacher: text_prepared.PreparedRows,
               student: text_prepared.PreparedRows):
    self.num_classes = teacher.num_classes
    self.class_names = teacher.class_names
    self.text: source.TextInfo = teacher.text
    self.student_text: source.TextInfo = student.text
    self._teacher, self._student = teacher, student

  def __len__(self) -> int:
    return len(self._teacher)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
    """Returns several examples, which is faster than one by one."""
    return [_join(*pair) for pair in zip(self._teacher.__getitems__(indices),
                                         self._student.__getitems__(indices))]


def open_rows(
    open_with: Callable[[str], text_prepared.PreparedRows],
    tokenizer: str, student_tokenizer: Optional[str]
) -> Union[text_prepared.PreparedRows, TwoTokenizations]:
  """Opens the rows of texts, in the tokens of both networks.

  Args:
    open_with: opens the rows, one for each text, given a tokenizer.
    tokenizer: as for `haikd.data.text.tokenizer.load`.
    student_tokenizer: that of the student; None if it has no other.
  """
  rows = open_with(tokenizer)
  if student_tokenizer is None:
    return rows
  return TwoTokenizations(rows, open_with(student_tokenizer))


def _join(example: Mapping[str, Any],
          student: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the columns of a text, or of several, in both tokens."""
  own = {key: value for key, value in student.items() if key not in _SHARED}
  real = (example['mask'].any(-1) & own['mask'].any(-1))[..., None]
  own['mask'] = own['mask'] & real
  return {**example, 'mask': example['mask'] & real,
          **{columns_lib.STUDENT + key: value for key, value in own.items()}}
