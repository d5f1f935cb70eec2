"""A config holds no secrets: it names the environment variable of each."""

import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import secrets

VALUE = 'hunter2'
# A data set that needs a token, and one whose code ends the program.
PLUGIN = f"""
import sys
import haikd
import numpy as np
from haikd import data

@haikd.register_dataset()
def closed(split, token: str, mask_token='[MASK]'):
  if token != {VALUE!r}:
    sys.exit('no')
  return data.Arrays(dict(x=np.zeros((40, 4), np.float32),
                          label=np.arange(40) % 3), num_classes=3)
"""


def make_config(**fields):
  config = config_lib.base()
  config.teacher.train.steps = 1
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.parametrize('field, value, shown', (
    *(('data.options', {name: VALUE}, 'a text') for name in (
        'token', 'api_key', 'hf_token', 'PASSWORD', 'client_secret',
        'aws_access_key')),
    ('losses', dict(x=dict(loss='kl_divergence', options=dict(
        auth=dict(password=VALUE)))), 'a text'),
    ('data.source_dir', f's3://me:{VALUE}@host/data', "s3://…@host/data"),
    ('data.options', dict(url=f'https://host/x?a=1&token={VALUE}#b'),
     'https://host/x?a=1&token=…#b'),
    *(('data.options', dict(url=f'https://host/?{name}={VALUE}'),
       f'https://host/?{name}=…') for name in (
           'X-Amz-Signature', 'access_token', 'apikey', 'subscription-key',
           'clientSecret', 'sig', 'AccountKey', 'mytoken', 'sasToken',
           'awsSecretAccessKey', 'subscriptionKey', 'commonkey')),
    ('plugins', (f'https://{VALUE}@host',), 'https://…@host'),
))
def test_a_secret_is_refused_and_not_repeated(field, value, shown):
  with pytest.raises(checks.ConfigError, match='must not hold a secret') as err:
    config_lib.validate(make_config(**{field: value}))
  assert VALUE not in str(err.value) and f'got {shown}. Put' in str(err.value)


@pytest.mark.parametrize('options', (
    dict(token='env:X', password=''), dict(mask_token='[MASK]', token=3),
    dict(tokens='a', key='b', pre_token='c', secretary='d'),
    dict(url='https://host/a@b?sort=key', path='gs://bucket/me@home'),
    dict(url='https://host/?monkey=1&hotkey=2&design=3&tokens=4')))
def test_what_is_no_secret_is_accepted(options):
  config_lib.validate(make_config(**{'data.options': options}))


def test_the_environment_is_read_where_an_option_is_used(monkeypatch):
  monkeypatch.setenv('MINE', VALUE)
  options = dict(token='env:MINE', other=3, nested=dict(password='env:MINE'))
  assert secrets.resolve('config.x', options) == dict(
      token=VALUE, other=3, nested=dict(password=VALUE))
  with pytest.raises(
      checks.ConfigError, match="^config.x.a must name an environment variable "
      "that is set; got 'env:OTHER'. Set OTHER.$"):
    secrets.resolve('config.x', dict(a='env:OTHER'))


def test_a_job_leaves_no_secret_behind(run, tmp_path, monkeypatch):
  (tmp_path / 'my_closed.py').write_text(PLUGIN)
  flags = ('--config.plugins=my_closed', '--config.data.name=closed')
  env = "--config.data.options={'token': 'env:MINE'}"
  monkeypatch.setenv('MINE', 'wrong')  # It calls sys.exit.
  code, _, err = run(*flags, env)
  assert code == 3 and err.count('\n') == 1 and 'got SystemExit: no' in err
  code, _, err = run(*flags, f"--config.data.options={{'token': '{VALUE}'}}")
  assert code == 2 and VALUE not in err and err.count('\n') == 1
  assert not (tmp_path / 'run').exists()
  monkeypatch.setenv('MINE', VALUE)
  code, out, err = run(*flags, env)
  assert code == 0, err
  assert VALUE not in out + err
  assert not any(VALUE.encode() in path.read_bytes()
                 for path in (tmp_path / 'run').rglob('*') if path.is_file())
  assert 'env:MINE' in (tmp_path / 'run/config.json').read_text()


def test_a_flag_with_a_password_is_masked(run):
  code, _, err = run(f'--workdir=https://me:{VALUE}@host/run')
  assert code == 2 and VALUE not in err and 'https://…@host/run' in err
