"""Marks in a program which of its work is the teacher's."""

import contextlib
from typing import Any

import jax

_TEACHER = 'haikd_teacher'


def teacher() -> contextlib.AbstractContextManager:
  """Returns a context whose operations are the teacher's forward pass."""
  return jax.named_scope(_TEACHER)


def is_teacher(eqn: Any) -> bool:
  """Returns whether an equation of a jaxpr was made in `teacher()`.

  Those of jaxprs inside it, such as the body of a loop, do not say so again.
  """
  return any(getattr(part, 'name', '') == _TEACHER
             for part in eqn.source_info.name_stack.stack)
