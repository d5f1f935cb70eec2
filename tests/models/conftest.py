"""What tests of several models share."""

import pytest

from haikd.core import base


@pytest.fixture(scope='session')
def without_maps():
  """A function that leaves out maps, which are float32 in every network."""

  def leave_out(value):
    is_lazy = isinstance(value, base.QueryKey)
    return value._replace(maps=None) if is_lazy else value

  return leave_out
