"""Pictures of plans: what the bars are made of, and life without matplotlib."""

import sys

import matplotlib.image
import pytest

from haikd.plan import estimate as estimate_lib
from haikd.plan import picture


def make(**fields):
  state = dict(parameters=30.0, optimizer=60.0, average=0.0, other=1.0,
               teacher=5.0, batch=4.0)
  seconds = dict(compute=0.2, memory=0.1, links=0.3, network=0.0)
  values = dict.fromkeys(estimate_lib.Estimate._fields)
  values.update(topology='v5e:4x4', devices=16, state=state, peak=150.0,
                available=160.0, seconds=seconds, bound=0.3, binds='links')
  return estimate_lib.Estimate(**{**values, **fields})


def test_bar_is_as_high_as_the_peak():
  found = picture.parts(make())
  assert found['during the step'] == 50.0
  assert sum(found.values()) == 150.0


@pytest.mark.parametrize('fields', [
    {}, dict(bound=None, seconds=dict.fromkeys(estimate_lib.BINDING)),
    dict(available=None)])
def test_picture_is_drawn(tmp_path, fields):
  path = picture.plot_plans(
      tmp_path, [make(**fields), make(topology='v5e:8x8', devices=64)])
  assert matplotlib.image.imread(path).shape[1] > 1000


def test_without_matplotlib_a_line_says_so(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  assert picture.plot_plans(tmp_path, [make()]) is None
  assert "pip install 'haikd[report]'" in capsys.readouterr().out
