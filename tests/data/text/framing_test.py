"""Tokens around texts, for those that hold some of them already."""

import numpy as np
import pytest

from haikd.data.text import framing


@pytest.mark.parametrize('ids, missing', [
    ([5, 6], [8, 9]), ([5, 8], [9]), ([8, 9], []), ([8], [9]), ([9], [8, 9])])
def test_a_text_gets_what_its_end_lacks(ids, missing):
  unused = [None] * len(framing.Frame._fields)
  frame = framing.Frame(*unused)._replace(
      before=np.int32([]), after=np.int32([8, 9]), always=False,
      adds_after=True)
  assert frame.missing_after(np.int32(ids)).tolist() == missing
