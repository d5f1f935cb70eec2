"""Images are resized by Pillow, with which tests compare."""

import pytest

from haikd.data.image import window


@pytest.fixture(autouse=True)
def by_pillow_alone(monkeypatch):
  """Hides the package that resizes to other roundings."""
  monkeypatch.setattr(window, 'is_fast', lambda: False)
