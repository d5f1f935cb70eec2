"""Registered names, plugins, and the errors of wrong ones."""

import importlib
import sys
import textwrap

import pytest

import haikd
from haikd.core import checks
from haikd.core import plugins
from haikd.core import registry

KINDS = (
    (registry.losses, lambda **k: haikd.register_loss(on='logits', **k)),
    (registry.models, haikd.register_model),
    (registry.datasets, haikd.register_dataset),
    (registry.aligners, haikd.register_aligner),
)


def thing(student, teacher, *, mask):
  return haikd.masked_mean(student - teacher, mask)


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0].kind)
def kind(request):
  with request.param[0].temporary():
    yield request.param


def test_name_is_that_of_the_function_or_the_one_given(kind):
  known, register = kind
  register()(thing)
  register(name='vendor/thing')(thing)
  assert {'thing', 'vendor/thing'} <= set(known.names())
  assert known['thing'].module == thing.__module__


def test_duplicate_names_both_modules(kind):
  known, register = kind
  register()(thing)
  stranger = lambda student, teacher, *, mask: None
  stranger.__module__, stranger.__name__ = 'their.module', 'thing'
  with pytest.raises(checks.ConfigError) as caught:
    register()(stranger)
  assert str(caught.value).startswith(
      f"name of a {known.kind} must be new; got 'thing' from their.module, but "
      f'{thing.__module__} has registered that name. Choose another one')
  register(replace=True)(stranger)
  assert known['thing'].module == 'their.module'


def test_unknown_name_lists_the_known_and_the_closest(kind):
  known, register = kind
  register()(thing)
  with pytest.raises(checks.ConfigError) as caught:
    known['thign']
  assert str(caught.value).startswith(
      f"{known.kind} must name a registered {known.kind}; got 'thign'. Did you "
      "mean 'thing'?")
  first = known.names()[:3]  # Of many, not all are listed.
  assert f'Known: {", ".join(first)}' in str(caught.value)


def test_temporary_registry_forgets():
  before = registry.losses.names()
  with registry.losses.temporary():
    haikd.register_loss(on='logits')(thing)
    assert 'thing' in haikd.loss_names()
  assert registry.losses.names() == before


def test_registered_function_is_returned_by_its_name():
  assert haikd.get_loss('kl_divergence') is haikd.losses.kl_divergence
  with registry.models.temporary():
    assert haikd.register_model()(thing) is thing


def test_module_named_in_the_config_is_imported(tmp_path, monkeypatch):
  (tmp_path / 'my_named_plugin.py').write_text(textwrap.dedent("""
      import haikd
      @haikd.register_loss(on='logits')
      def from_config(student, teacher, *, mask):
        return haikd.masked_mean(student, mask)
  """))
  monkeypatch.syspath_prepend(tmp_path)
  with registry.losses.temporary():
    plugins.load(('my_named_plugin',))
    assert 'from_config' in haikd.loss_names()
    plugins.load(('my_named_plugin',))  # Loading twice is no error.
  del sys.modules['my_named_plugin']


@pytest.fixture
def install(tmp_path, monkeypatch):
  """Makes a module look like an installed package that announces a plugin."""

  def call(module, text):
    (tmp_path / f'{module}.py').write_text(textwrap.dedent(text))
    info = tmp_path / f'{module}-1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: {module}\nVersion: 1\n')
    (info / 'entry_points.txt').write_text(f'[haikd.plugins]\nx = {module}\n')
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()

  yield call
  for name in [name for name in sys.modules if name.startswith('my_')]:
    del sys.modules[name]


def test_installed_package_announces_itself(install):
  install('my_announced', """
      import haikd
      @haikd.register_aligner()
      def announced(student, teacher, *, mask, on):
        return haikd.Pair(student, teacher, mask)
  """)
  with registry.aligners.temporary():
    plugins.load()
    assert 'announced' in registry.aligners.names()


def test_broken_installed_package_is_not_blamed_on_the_config(install):
  install('my_broken_package', 'import haikd\nhaikd.no_such_name\n')
  with pytest.raises(checks.ConfigError) as caught:
    plugins.load()
  message = str(caught.value)
  assert 'config.plugins' not in message
  assert message.startswith(
      "installed package 'my_broken_package', which announces a plugin, must "
      "be importable; got 'my_broken_package' (")
  assert 'AttributeError: ' in message and 'no_such_name' in message


@pytest.mark.parametrize('module, text, reason, remedy', (
    ('no.such_module', None, 'ModuleNotFoundError: ', 'Install its package'),
    ('my_plugin.no_such_module', '', 'ModuleNotFoundError: ',
     'Install its package'),
    ('.relative', None, 'TypeError: ', 'Fix that module'),
    ('', None, 'ValueError: Empty module name', 'Fix that module'),
    ('my_plugin', 'def f(:\n', 'SyntaxError: ', 'Fix that module'),
    ('my_plugin', 'import no_such_package\n', "'no_such_package'",
     'Fix that module'),
    ('my_plugin', '{}["key"]\n', 'KeyError: key)', 'Fix that module'),
))
def test_plugin_that_cannot_be_imported_is_refused(
    tmp_path, monkeypatch, module, text, reason, remedy):
  monkeypatch.syspath_prepend(tmp_path)
  if text is not None:
    (tmp_path / 'my_plugin.py').write_text(text)
    importlib.invalidate_caches()
  try:
    with pytest.raises(checks.ConfigError) as caught:
      plugins.load((module,))
  finally:
    sys.modules.pop('my_plugin', None)
  message = str(caught.value)
  assert message.startswith('config.plugins must name modules that can be '
                            f'imported; got {module!r} (')
  assert '\n' not in message
  assert reason in message and remedy in message


@pytest.mark.parametrize('function', (
    lambda x, y, *, mask: None,
    lambda teacher, student, *, mask: None,
    lambda student, *, mask: None,
    lambda student, teacher: None,
    lambda student, *, teacher, mask: None,
    lambda student, teacher, **mask: None,
    lambda *student, teacher, mask: None,
))
def test_function_with_other_parameters_is_no_loss(function):
  before = haikd.loss_names()
  match = (r'a loss must take student, teacher, .*; got '
           r'<lambda>\(.*\) of .*registry_test. Write')
  with pytest.raises(checks.ConfigError, match=match):
    haikd.register_loss(on='logits')(function)
  assert haikd.loss_names() == before
