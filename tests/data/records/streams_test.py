"""Lines of files, one after another."""

import io
import pathlib
import types

from haikd.data.records import streams


def test_a_line_that_is_left_out_is_not_yielded():
  skipped, file = [], io.BytesIO(b'a\n\xff\nb\n')
  broken = types.SimpleNamespace(skip=skipped.append)
  stream = streams.Stream(pathlib.Path('x'), file, file.tell)
  found = [(x.number, x.text) for x in streams.lines(stream, broken)]
  assert found == [(1, 'a\n'), (3, 'b\n')]
  assert len(skipped) == 1 and 'line 2' in str(skipped[0])
