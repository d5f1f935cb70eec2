"""Options reach functions as plain dicts, wherever they leave the config."""

import haiku as hk
import ml_collections
from ml_collections import config_dict
import pytest

import haikd
from haikd import config as config_lib
from haikd import models  # noqa: F401  Registers the zoo for good.
from haikd.core import registry
from haikd.data import builders  # noqa: F401  Likewise.

NESTED = dict(a=dict(b=dict(c=1)), d=(dict(e=2), [3]))


def test_plain_is_plain_at_any_depth():
  options = config_lib.ConfigDict(dict(
      a=dict(b=1), t=(config_lib.ConfigDict(dict(c=2)), 3),
      r=config_dict.FieldReference(4)))
  plain = config_lib.plain(options)
  assert plain == dict(a=dict(b=1), t=(dict(c=2), 3), r=4)
  assert type(plain['a']) is type(plain['t'][0]) is dict
  assert type(plain['r']) is int


def is_plain(value):
  if isinstance(value, (list, tuple)):
    return all(map(is_plain, value))
  if isinstance(value, dict):
    return type(value) is dict and all(map(is_plain, value.values()))
  return not isinstance(value, ml_collections.ConfigDict)


@pytest.fixture
def seen():
  """What functions of each kind were given, by kind; run in a job."""
  seen = {}
  with (registry.losses.temporary(), registry.models.temporary(),
        registry.datasets.temporary(), registry.aligners.temporary()):

    @haikd.register_model(name='note_model')
    def model(inputs, *, is_training, num_classes, nested=None):
      seen['model'] = nested
      features = inputs.reshape(len(inputs), -1)
      return hk.Linear(num_classes)(haikd.tap('features', features))

    @haikd.register_loss(name='note_loss', on='logits')
    def loss(student, teacher, *, mask, nested=None):
      seen['loss'] = nested
      return haikd.masked_mean((student - teacher) ** 2, mask)

    @haikd.register_aligner(name='note_aligner')
    def aligner(student, teacher, *, mask, on, nested=None):
      seen['aligner'] = nested
      return registry.aligners['none'].function(
          student, teacher, mask=mask, on=on)

    @haikd.register_dataset(name='note_data')
    def data(split, *, nested=None):
      seen['data'] = nested
      return registry.datasets['synthetic'].function(
          split, size=32, shape=(2, 2, 1), num_classes=2)

    yield seen


def test_functions_get_plain_options(seen, tmp_path):
  from haikd.run import job
  config = config_lib.base()
  config.steps, config.batch_size = 1, 8
  config.data.name, config.data.options = 'note_data', dict(nested=NESTED)
  for network in (config.teacher, config.student):
    network.model, network.options = 'note_model', dict(nested=NESTED)
  config.teacher.train.steps = 1
  config.losses.x = dict(
      loss='note_loss', options=dict(nested=NESTED), align='note_aligner',
      align_options=dict(nested=NESTED))
  job.train(config, tmp_path / 'run')
  assert set(seen) == {'model', 'loss', 'aligner', 'data'}
  for kind, options in seen.items():
    assert options == NESTED and is_plain(options), kind
