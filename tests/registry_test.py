"""Names, plugins, and what is said when one is wrong."""

import importlib.metadata
import sys
import textwrap

import pytest

import haikd
from haikd import checks
from haikd import registry

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
  assert 'their.module' in str(caught.value)
  assert thing.__module__ in str(caught.value)
  register(replace=True)(stranger)
  assert known['thing'].module == 'their.module'


def test_unknown_name_lists_the_known_and_the_closest(kind):
  known, register = kind
  register()(thing)
  with pytest.raises(checks.ConfigError) as caught:
    known['thign']
  assert "Did you mean 'thing'?" in str(caught.value)
  assert ', '.join(known.names()) in str(caught.value)


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
    registry.load_plugins(('my_named_plugin',))
    assert 'from_config' in haikd.loss_names()
    registry.load_plugins(('my_named_plugin',))  # Again is no duplicate.
  del sys.modules['my_named_plugin']


def test_installed_package_announces_itself(tmp_path, monkeypatch):
  (tmp_path / 'my_announced.py').write_text(textwrap.dedent("""
      import haikd
      @haikd.register_aligner()
      def announced(student, teacher, *, mask, on):
        return haikd.Pair(student, teacher, mask)
  """))
  info = tmp_path / 'my_announced-1.dist-info'
  info.mkdir()
  (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: my-announced\n'
                                 'Version: 1\n')
  (info / 'entry_points.txt').write_text('[haikd.plugins]\nx = my_announced\n')
  monkeypatch.syspath_prepend(tmp_path)
  importlib.metadata.MetadataPathFinder.invalidate_caches()
  with registry.aligners.temporary():
    registry.load_plugins()
    assert 'announced' in registry.aligners.names()
  del sys.modules['my_announced']


def test_plugin_that_cannot_be_imported_is_refused():
  with pytest.raises(checks.ConfigError, match="got 'no.such_module'"):
    registry.load_plugins(('no.such_module',))
