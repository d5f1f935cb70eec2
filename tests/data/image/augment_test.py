"""Augmentations by name: order, options, and what a user registers."""

import numpy as np
import pytest

from haikd.core import checks
from haikd.data.image import augment


@pytest.fixture(autouse=True)
def temporary():
  with augment.augmentations.temporary():
    yield


def trace(name, stage='geometry'):
  """Registers an augmentation that records its name."""

  @augment.register_augmentation(name, stage=stage)
  def function(examples, rng, *, times=1):
    return dict(seen=examples['seen'] + [name] * times)

  return function


def test_no_augmentation_changes_nothing():
  examples = dict(image=np.ones(3))
  assert augment.build_augment({}, None)(examples, None) is examples


def test_order_is_by_stage_and_then_by_name():
  trace('a', 'mix')
  trace('b', 'pixels')
  trace('c', 'geometry')
  trace('d', 'geometry')
  apply = augment.build_augment(dict(a={}, b={}, d=dict(times=2), c={}), None)
  assert apply(dict(seen=[]), None)['seen'] == ['c', 'd', 'd', 'b', 'a']


def test_number_of_classes_is_passed_to_functions_that_take_it():

  @augment.register_augmentation()
  def takes(examples, rng, *, num_classes):
    return dict(seen=num_classes)

  assert augment.build_augment(dict(takes={}), 7)({}, None) == dict(seen=7)


def test_generator_is_passed_on():

  @augment.register_augmentation()
  def draws(examples, rng):
    return dict(seen=rng)

  assert augment.build_augment(dict(draws={}), None)({}, 'rng')['seen'] == 'rng'


@pytest.mark.parametrize('config, message', [
    (dict(shfit={}),
     "a registered augmentation; got 'shfit'. Did you mean 'shift'"),
    (dict(shift=dict(pixel=1)), 'config.data.augment.shift.pixel must be an '
     "option of shift; got 'pixel'. Did you mean 'pixels'"),
    (dict(mixup=dict(num_classes=3)), 'num_classes must be an option of mixup'),
    (dict(shift=2),
     'config.data.augment.shift must be a dict of options; got 2. Write '
     'shift={}'),
])
def test_unknown_names_and_options_are_refused(config, message):
  with pytest.raises(checks.ConfigError, match=message):
    augment.build_augment(config, None)


@pytest.mark.parametrize('options, rule', [
    (dict(shift=dict(pixels='a')), "shift.pixels must be of type int; got 'a'"),
    (dict(shift=dict(pixels=1.5)), 'shift.pixels must be of type int; got 1.5'),
    (dict(shift=dict(pixels=True)), 'shift.pixels must be of type int'),
    (dict(flip=dict(probability='x')), 'flip.probability must be of type flo'),
])
def test_option_of_another_type_is_refused(options, rule):
  with pytest.raises(checks.ConfigError, match=f'config.x.{rule}'):
    augment.build_augment(options, None, field='config.x')


def test_integer_is_accepted_for_a_float():
  augment.build_augment(dict(flip=dict(probability=1)), None)


def test_error_of_an_augmentation_becomes_one_line():

  @augment.register_augmentation()
  def breaks(examples, rng, *, times=1):
    return examples * times

  apply = augment.build_augment(dict(breaks=dict(times='a')), None)
  with pytest.raises(checks.DataError,
                     match='config.data.augment.breaks must work on the batch; '
                     'got TypeError: .* Fix its options or its code') as e:
    apply(dict(image=np.zeros((1, 2, 2, 1))), None)
  assert isinstance(e.value.__cause__, TypeError)


def test_unknown_stage_is_refused():
  with pytest.raises(checks.ConfigError,
                     match="stage must be a stage of augmentation; got 'pixel'."
                     " Did you mean 'pixels'"):
    trace('x', stage='pixel')


def test_name_must_be_new():
  with pytest.raises(checks.ConfigError, match="got 'shift' from"):
    trace('shift')
