"""Examples that cannot be used are refused, named by split and index."""

import logging
import re

import numpy as np
import pytest

from haikd.core import checks
from haikd.data import arrays
from haikd.data import reader
from haikd.processes import watchdog


class Listed:
  """A user's Source: a list that counts its reads."""

  def __init__(self, examples, num_classes=3):
    self.examples = examples
    self.num_classes = num_classes
    self.reads = 0

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    self.reads += 1
    return self.examples[index]


class Batched(Listed):
  """A Source that also reads several examples at once."""

  def __getitems__(self, indices):
    return [self.examples[i] for i in indices]


def good(size=4):
  return [dict(x=np.float32([i, i]), label=i % 3) for i in range(size)]


def in_memory(examples, num_classes=3):
  columns = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
  return arrays.Arrays(columns, num_classes=num_classes)


SOURCES = pytest.mark.parametrize('make', [Listed, Batched, in_memory])


@SOURCES
@pytest.mark.parametrize('load', [False, True])
def test_gather_returns_columns_in_the_requested_order(make, load):
  data = reader.Reader(make(good()), 'train')
  if load:
    data.load()
  columns = data.gather(np.array([2, 0, 2]))
  assert columns['x'].tolist() == [[2, 2], [0, 0], [2, 2]]
  assert columns['label'].tolist() == [2, 0, 2]


def test_small_split_is_read_once():
  listed = Listed(good())
  data = reader.Reader(listed, 'train')
  data.load()
  reads = listed.reads
  data.gather([0, 1])
  data.load()
  assert data.cached and listed.reads == reads


def test_large_split_is_read_when_needed(monkeypatch):
  monkeypatch.setattr(reader, 'CACHE_BYTES', 8)
  listed = Listed(good())
  data = reader.Reader(listed, 'train')
  data.load()
  assert not data.cached
  assert listed.reads == 1  # To find the size of an example.
  assert data.gather([3, 1])['label'].tolist() == [0, 1]


def test_split_of_several_chunks_is_read_to_the_end(monkeypatch):
  monkeypatch.setattr(reader, '_CHUNK', 3)
  data = reader.Reader(Listed(good(8)), 'train')
  data.load()
  assert data.gather(range(8))['x'][:, 0].tolist() == list(range(8))


def test_each_chunk_of_a_split_is_a_sign_of_life(monkeypatch):
  monkeypatch.setattr(reader, '_CHUNK', 3)
  signs = []
  monkeypatch.setattr(watchdog, 'alive', lambda: signs.append(listed.reads))
  listed = Listed(good(8))
  reader.Reader(listed, 'train').load()
  assert signs == [1, 4, 7]  # The first example is read before.


@SOURCES
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(make, value):
  examples = good()
  examples[2]['x'] = np.float32([0, value])
  with pytest.raises(
      checks.DataError,
      match=rf"^example 2 of split 'train' must have a finite x; got {value}"):
    reader.Reader(make(examples), 'train').load()


@SOURCES
@pytest.mark.parametrize('label', [3, -1, -99])
def test_labels_out_of_range_are_refused(make, label):
  examples = good()
  examples[1]['label'] = label
  with pytest.raises(
      checks.DataError,
      match=f"example 1 of split 'test' must have a label below "
      f'num_classes=3, or -100 for none; got {label}'):
    reader.Reader(make(examples), 'test').load()


@pytest.mark.parametrize('method', ['__getitem__', '__getitems__'])
def test_example_that_cannot_be_read_is_named(method):

  def fails(self, index):
    raise FileNotFoundError('7.png')

  kind = type('Failing', (Listed,), {method: fails})
  with pytest.raises(
      checks.DataError,
      match="^example 2 of split 'test' must be readable; got "
      "FileNotFoundError: 7.png. Fix the data or the data set's code; --debug"):
    reader.Reader(kind(good()), 'test').gather([2, 3])


@SOURCES
def test_unlabelled_examples_are_allowed(make):
  examples = good()
  examples[1]['label'] = -100
  reader.Reader(make(examples), 'train').load()


def test_bad_example_of_a_large_split_is_named_by_its_index(monkeypatch):
  monkeypatch.setattr(reader, 'CACHE_BYTES', 8)
  examples = good()
  examples[3]['label'] = 9
  data = reader.Reader(Listed(examples), 'train')
  data.load()
  with pytest.raises(checks.DataError, match='example 3 of .*; got 9'):
    data.gather([1, 3])


@pytest.mark.parametrize('bad, message', [
    (dict(x=np.float32([1, 2, 3]), label=0),
     r'example 2 .* must have the keys, shapes and dtypes of the others; got '
     r'label int64\[\], x float32\[3\] instead of .*Pad what is ragged'),
    (dict(x=np.float32([1, 2])), 'example 2 .* the keys, shapes and dtypes'),
    ((np.float32([1, 2]), 0), 'example 2 .* must be a dict; got tuple'),
])
def test_example_unlike_the_others_is_refused(bad, message):
  examples = good()
  examples[2] = bad
  with pytest.raises(checks.DataError, match=message):
    reader.Reader(Listed(examples), 'train').load()


def test_example_unlike_those_of_another_chunk_is_refused(monkeypatch):
  monkeypatch.setattr(reader, '_CHUNK', 2)
  examples = good(3)
  examples[2]['x'] = np.float32([1])  # Would be broadcast if accepted.
  with pytest.raises(checks.DataError, match='example 2 .* the keys, shapes'):
    reader.Reader(Listed(examples), 'train').load()


@pytest.mark.parametrize('example, message', [
    (dict(label=0), r"must hold an input; got the keys \['label'\]"),
    (dict(x='text'), 'must hold numbers in x'),
    (dict(x=1.0, mask=np.ones(3)), 'must have a boolean mask'),
    (dict(x=1.0, target_mask=np.ones(3, bool)),
     'must have a target_mask of the shape of its mask'),
    (dict(x=1.0, label=np.ones(2) / 2),
     'must have one probability per class as its label'),
    (dict(x=1.0, label=0.5),
     'must have one probability per class as its label'),
])
def test_columns_without_a_meaning_are_refused(example, message):
  with pytest.raises(checks.DataError, match=message):
    reader.Reader(Listed([example]), 'train').load()


def test_labels_need_a_number_of_classes():
  with pytest.raises(checks.DataError, match='unless num_classes is known'):
    reader.Reader(Listed(good(), num_classes=None), 'train').load()


def test_scores_need_no_number_of_classes():
  examples = [dict(x=i, label=np.float32(i / 2)) for i in range(3)]
  data = reader.Reader(Listed(examples, num_classes=None), 'train')
  assert data.gather([2, 1])['label'].tolist() == [1.0, 0.5]


@pytest.mark.parametrize('label, text', [
    (np.float32(np.nan), 'must have a finite label'),
    (np.array('cat'), 'hold numbers in label; got label.dtype=<U3. Number'),
])
def test_labels_other_than_finite_numbers_are_refused(label, text):
  with pytest.raises(checks.DataError, match=text):
    reader.Reader(Listed([dict(x=1, label=label)], num_classes=None),
                  'train').load()


@pytest.mark.parametrize('task, labels, num_classes', (
    ('regression', [3, 500_000, 7], None),
    ('multilabel', [[0, 1], [1, 1], [0, 0]], 2)))
def test_integers_are_numbers_of_their_task_example_by_example(
    task, labels, num_classes):
  """A slice is read example by example, unlike a whole table."""
  examples = [dict(x=np.float32(i), label=np.array(label))
              for i, label in enumerate(labels)]
  data = reader.Reader(Listed(examples, num_classes), 'train[:50%]', task)
  data.load()
  label = data.gather([0, 1, 2])['label']
  assert data.cached and label.dtype == np.float32
  np.testing.assert_array_equal(label, labels)


@pytest.mark.parametrize('labels, names, match', (
    # 3 of 496 are there; 3 of 5, but 4 examples are too few for 5 classes.
    ([0, 495, 0, 9], None, 'of 493 of 496 classes. If its labels are numbers '
     "to predict, set config.task='regression'; if its examples are sorted"),
    ([4, 0, 0, -100], None, r'of 3 of 5 classes\. If its labels are numbers'),
    ([4, 0, 1, 1, 2, 2], None, 'of 1 of 5 classes: 3. If its examples are sor'),
    ([4, 0, 0], 'abcde', 'of 3 of 5 classes: b, c, d. If its examples are'),
    (range(5), None, None)))
def test_absent_classes_are_said(labels, names, match, caplog):
  caplog.set_level(logging.INFO, 'haikd')
  source = in_memory([dict(x=1.0, label=np.array(i)) for i in labels],
                     max(labels) + 1)
  source.class_names = names
  data = reader.Reader(source, 'train')
  data.load()
  data.say_absent_classes()
  found = re.search(match or 'example', caplog.text)
  assert bool(found) == (match is not None)
