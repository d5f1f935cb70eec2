"""Options of a config against the parameters of a function."""

from typing import Optional, Union

import numpy as np
import pytest

from haikd.core import checks
from haikd.core import signatures


def function(logits, *, count: int, rate: float = 0.5, is_on: bool = True,
             name: Optional[str] = None, late: 'int | None' = None,
             either: Union[int, str] = 3, unset: int = None,
             shape: tuple[int, ...] = (), sizes: Union[int, tuple] = 1,
             anything=None):
  del logits, count, rate, is_on, name, late, either, unset, shape, sizes
  del anything


def check(options, of=function, **keywords):
  signatures.check_options('config.x', of, options,
                           reserved=('logits',), **keywords)


@pytest.mark.parametrize('options', [
    dict(rate=1), dict(rate=0.1), dict(name=None), dict(name='a'),
    dict(late=None), dict(late=2), dict(either=1), dict(either='a'),
    dict(rate=np.float32(0.1)), dict(rate=np.int64(1)), dict(late=np.int32(2)),
    dict(is_on=np.bool_(True)), dict(unset=None), dict(shape='abc'),
    dict(sizes=(1, 2)), dict(anything=object())])
def test_values_of_the_annotated_types_pass(options):
  check(dict(options, count=3))


@pytest.mark.parametrize('options, message', [
    (dict(count='3'), "config.x.count must be of type int; got '3'."),
    (dict(count=True), 'config.x.count must be of type int; got True.'),
    (dict(count=None), 'config.x.count must be of type int; got None.'),
    (dict(count=1, rate='1'), "config.x.rate must be of type float; got '1'."),
    (dict(count=1, rate=None), 'rate must be of type float; got None.'),
    (dict(count=1, is_on=1), 'config.x.is_on must be of type bool; got 1.'),
    (dict(count=1, name=1), 'name must be of type str or None; got 1.'),
    (dict(count=1, late=1.5), 'late must be of type int or None; got 1.5.'),
    (dict(count=1, either=1.5), 'either must be of type int or str; got 1.5.'),
])
def test_values_of_other_types_are_refused(options, message):
  with pytest.raises(checks.ConfigError) as raised:
    check(options)
  assert message in str(raised.value)


def test_a_schedule_is_no_value_of_the_type():
  schedule = dict(kind='linear', begin=0.0, end=1.0)
  check(dict(count=1, rate=schedule), scheduled=['rate'])
  with pytest.raises(checks.ConfigError, match='rate must be of type float'):
    check(dict(count=1, rate=schedule))


def test_names_are_checked_first():
  with pytest.raises(checks.ConfigError, match="mean 'rate'"):
    check(dict(count='3', rat=1))
  with pytest.raises(checks.ConfigError, match='count must be given'):
    check(dict(rate='x'))


def test_what_only_a_type_checker_resolves_is_not_checked():

  def late(count: 'int', other: 'Missing' = None):  # noqa: F821
    del count, other

  check(dict(count=1, other='x'), of=late)
  with pytest.raises(checks.ConfigError, match='count must be of type int'):
    check(dict(count='x'), of=late)


def test_options_by_keywords_are_checked_where_they_are_named():

  def open_ended(count: int = 1, **options):
    del count, options

  check(dict(other='x'), of=open_ended)
  with pytest.raises(checks.ConfigError, match='count must be of type int'):
    check(dict(count='x'), of=open_ended)
