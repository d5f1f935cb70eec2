"""Networks and data whose targets do not fit are refused, others are not."""

import pytest

import haikd
from haikd import config as config_lib
from haikd.core import checks
from haikd.core import registry
from haikd.run import resolve

NETWORKS = dict(
    llama=('llama', {}),
    gpt2=('gpt2', {}),
    vectors=('bert', {}),
    classes=('bert', dict(head='classification')),
    masked=('bert', dict(head='masked_lm')),
    vit=('vit', {}),
    users=('users', {}))
DATA = dict(
    text=('text', {}), completions=('completions', {}), tokens=('tokens', {}),
    masked=('masked_text', {}), sentences=('sentences', {}),
    labelled=('labelled_sentences', {}), digits=('digits', {}),
    images=('synthetic', {}), synthetic=('synthetic', dict(kind='tokens')),
    users=('mine', {}), tfds=('imdb_reviews', {}))
FITTING = dict(
    llama='text completions tokens synthetic sentences',
    gpt2='text completions tokens synthetic sentences',
    vectors='sentences',
    classes='labelled digits images sentences',  # Images: refused by shape.
    masked='masked sentences',
    vit='labelled digits images sentences',
    users='text completions tokens masked sentences labelled digits images '
    'synthetic')


@pytest.fixture(autouse=True)
def users():
  with registry.models.temporary(), registry.datasets.temporary():
    haikd.register_model('users')(lambda inputs, *, is_training: inputs)
    haikd.register_dataset('mine')(lambda split: None)
    yield


def make_config(network, data, student=None):
  config = config_lib.base()
  for role, name in (('teacher', network), ('student', student or network)):
    config[role].model, config[role].options = NETWORKS[name]
  config.data.name, config.data.options = DATA[data]
  return config


@pytest.mark.parametrize('data', DATA)
@pytest.mark.parametrize('network', NETWORKS)
def test_targets_fit_what_is_predicted(network, data):
  config = make_config(network, data)
  if data in ('users', 'tfds', *FITTING[network].split()):
    resolve.from_pretrained(config)
    return
  with pytest.raises(checks.ConfigError, match=(
      r'^config.data.name must be a data set for (\w+), which is what '
      rf"config.teacher predicts; got '{DATA[data][0]}', whose targets are for "
      r'\w+. Data sets for \1: .*\w\.$')):
    resolve.from_pretrained(config)


def test_the_data_that_is_named_fits():
  """Each of the data sets that an error names passes the check."""
  for network in set(NETWORKS) - {'users'}:
    config = make_config(network, 'users')
    config.data.name = 'masked_text' if network != 'masked' else 'text'
    with pytest.raises(checks.ConfigError) as caught:
      resolve.from_pretrained(config)
    named = str(caught.value).rpartition(': ')[2].rstrip('.').split(', ')
    assert named
    for name in named:
      config.data.name = name
      resolve.from_pretrained(config)


def test_each_network_is_checked():
  config = make_config('users', 'labelled', student='masked')
  with pytest.raises(checks.ConfigError, match='what config.student predicts'):
    resolve.from_pretrained(config)


def test_the_next_token_is_not_compared_with_the_token_itself():
  config = make_config('masked', 'sentences', student='llama')
  with pytest.raises(checks.ConfigError, match=(
      'config.student must predict the same as config.teacher, .*; got '
      'causal_lm and masked_lm')):
    resolve.from_pretrained(config)
  resolve.from_pretrained(make_config('masked', 'sentences', student='vectors'))


def test_a_users_own_task_needs_data_of_that_task():
  haikd.register_model('depths', task='depth')(
      lambda inputs, *, is_training: inputs)
  haikd.register_dataset('rooms', tasks=lambda kind='depth': (kind,))(
      lambda split, kind='depth': None)
  config = make_config('users', 'users')
  config.teacher.model = config.student.model = 'depths'
  resolve.from_pretrained(config)
  config.data.name = 'rooms'
  resolve.from_pretrained(config)
  config.data.options.kind = 'colour'
  with pytest.raises(checks.ConfigError, match=(
      "got 'rooms', whose targets are for colour. Register a data set for it")):
    resolve.from_pretrained(config)
