"""grain.MapDataset and other sequences of examples as data sets."""

import logging

import grain
import numpy as np
import pytest

import haikd
from haikd import library  # noqa: F401  Registers all there is.
from haikd.core import checks
from haikd.core import registry
from haikd.data import sequences


def map_dataset(size=40, classes=3):
  return grain.MapDataset.source(np.arange(size)).map(lambda i: dict(
      x=np.float32([i, -i]), label=np.int32(i % classes)))


def small_config(**fields):
  config = haikd.config.base()
  config.steps = config.teacher.train.steps = 2
  config.batch_size = 8
  config.student.options = config.teacher.options = dict(hidden=(4,))
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.parametrize('label, count', (
    (lambda i: i % 5, 5), (lambda i: i / 7, None),
    (lambda i: np.float32([1, i % 2]), 2), (lambda i: -100, None)))
def test_classes_follow_from_the_labels(label, count, caplog):
  caplog.set_level(logging.INFO, 'haikd')
  made = sequences.Counted(
      [dict(x=0, label=label(i)) for i in range(20)], 'train')
  assert made.num_classes == count
  assert f'num_classes is {count}, by the labels of the 20 exam' in caplog.text


def test_examples_without_labels_have_no_classes():
  assert sequences.Counted([dict(x=0)], 'train').num_classes is None


@pytest.mark.parametrize('data, match', (
    (map_dataset().repeat(), "split 'train' must have an end"),
    (map_dataset().filter(lambda x: False), 'example 0 of split .train. must '
     'be a dict; got NoneType'),
    (map_dataset().to_iter_dataset(), 'must return a Source, with __len__; got '
     '.* so is a grain.MapDataset'),
    (dict(train=dict(x=[1])), r"data must have examples in its split 'train'; "
     r'got dict. For arrays, give haikd.data.from_arrays\('),
    (np.zeros(3), 'got ndarray. For arrays'),
))
def test_what_is_no_sequence_of_examples_is_refused(tmp_path, data, match):
  with pytest.raises((checks.ConfigError, checks.DataError), match=match):
    haikd.train(small_config(), tmp_path, data=data)


def test_a_map_dataset_is_cut_and_trained(tmp_path, caplog):
  caplog.set_level(logging.INFO, 'haikd')
  config = small_config(**{'data.train': 'train[:-8]',
                           'evaluation.split': 'train[-8:]',
                           'evaluation.final': 'train[-8:]'})
  results = haikd.train(config, tmp_path, data=map_dataset())
  assert 'num_classes is 3' in caplog.text
  x = np.stack([map_dataset()[i]['x'] for i in range(32, 40)])
  predicted = np.argmax(haikd.load(tmp_path).apply(x), -1)
  assert results['student']['accuracy'] == pytest.approx(
      np.mean(predicted == np.arange(32, 40) % 3))


def test_labels_beyond_those_of_training_are_refused(tmp_path):
  data = dict(train=map_dataset(), validation=map_dataset(classes=4),
              test=map_dataset())
  with pytest.raises(checks.DataError, match="example 3 of split 'validation' "
                     'must have a label below num_classes=3'):
    haikd.train(small_config(), tmp_path, data=data)


def test_a_map_dataset_by_the_command_line(run, caplog):
  @registry.register_dataset()
  def mapped(split):  # pylint: disable=unused-variable
    made = map_dataset(dict(train=40, validation=8, test=8)[split])
    made.num_classes = 3
    return made

  code, out, err = run('--config.data.name=mapped', '--config.data.options={}')
  assert code == 0, err
  assert 'accuracy' in out and 'num_classes is' not in err
