"""Garbage is left alone while programs are imported and traced."""

import gc
import weakref

import pytest

from haikd.core import garbage


class Cycle:
  """Refers to itself, so that only the collector frees it."""

  def __init__(self):
    self.itself = self


@pytest.fixture(autouse=True)
def as_usual():
  yield
  gc.unfreeze()
  gc.enable()


def make_objects():
  return [[] for _ in range(100 * gc.get_threshold()[0])]


def test_nothing_is_collected_inside():
  with garbage.uncollected():
    cycle = weakref.ref(Cycle())
    make_objects()
    assert cycle() is not None
  assert gc.isenabled()


def test_what_was_made_inside_is_old_at_the_end():
  gc.collect()
  with garbage.uncollected():
    objects = make_objects()
  # A search of the young ones would take as long as those inside.
  assert gc.get_count()[0] < len(objects) / 2
  assert any(x is objects for x in gc.get_objects(generation=2))
  assert gc.get_freeze_count() == 0


def test_cycle_of_inside_is_found_by_a_full_collection():
  with garbage.uncollected():
    cycle = weakref.ref(Cycle())
  gc.collect()
  assert cycle() is None


def test_collector_that_is_off_stays_off():
  gc.disable()
  with garbage.uncollected():
    pass
  assert not gc.isenabled()


def test_what_the_caller_has_frozen_stays_frozen():
  gc.freeze()
  with garbage.uncollected():
    pass
  assert gc.get_freeze_count() > 0 and gc.isenabled()


def test_collector_is_on_again_after_an_error():
  with pytest.raises(ValueError, match='no'):
    with garbage.uncollected():
      raise ValueError('no')
  assert gc.isenabled()


@pytest.mark.parametrize('due, end_job', [
    ('_DUE', lambda: None), ('_DUE_AT_END', garbage.end_job)])
def test_what_was_left_is_collected_once_it_is_much(monkeypatch, due, end_job):
  monkeypatch.setattr(garbage, due, 10_000)
  monkeypatch.setattr(garbage, '_made', 0)
  with garbage.uncollected():
    cycle = weakref.ref(Cycle())
    kept = [[] for _ in range(6_000)]
  end_job()
  assert cycle() is not None
  with garbage.uncollected():
    kept += [[] for _ in range(6_000)]
  end_job()
  assert cycle() is None and garbage._made == 0
