"""Docstrings of public functions and classes have the sections of the style."""

import importlib
import inspect
import pkgutil
import re

import pytest

import haikd

SECTIONS = ('Attributes', 'Args', 'Yields', 'Returns', 'Raises', 'References')
LOSSES = haikd.loss_names()


def public():
  """Yields (name, object) of the public functions and classes of haikd."""
  for info in pkgutil.walk_packages(haikd.__path__, 'haikd.'):
    module = importlib.import_module(info.name)
    for name, thing in vars(module).items():
      defined_here = getattr(thing, '__module__', None) == module.__name__
      if defined_here and not name.startswith('_') and callable(thing):
        if inspect.isfunction(thing) or inspect.isclass(thing):
          yield f'{info.name}.{name}', thing


PUBLIC = dict(public())


def sections(thing):
  """Returns {section: its lines} of a docstring, in its order."""
  lines_of, lines = {}, None
  for line in (inspect.getdoc(thing) or '').splitlines():
    match = re.fullmatch(r'([A-Z][a-z]+):', line)
    if match and match[1] in SECTIONS:
      lines = lines_of.setdefault(match[1], [])
    elif lines is not None:
      lines.append(line)
  return lines_of


@pytest.mark.parametrize('name', PUBLIC)
def test_docstring_has_a_summary_and_its_sections_in_order(name):
  text = inspect.getdoc(PUBLIC[name])
  assert text, name
  assert re.search(r'[.:?]$', text.splitlines()[0]), text.splitlines()[0]
  order = [SECTIONS.index(section) for section in sections(PUBLIC[name])]
  assert order == sorted(order)


@pytest.mark.parametrize('name', PUBLIC)
def test_args_are_those_of_the_function(name):
  thing = PUBLIC[name]
  described = sections(thing).get('Args')
  if described is None:
    return
  names = {
      match[1].lstrip('*') for match in
      (re.match(r'  (\*{0,2}\w+): ', line) for line in described) if match
  }
  parameters = set(inspect.signature(thing).parameters)
  assert names <= parameters, names - parameters
  if inspect.isfunction(thing):
    assert parameters <= names, parameters - names


@pytest.mark.parametrize('name', LOSSES)
def test_loss_documents_shapes_additivity_and_source(name):
  thing = haikd.get_loss(name)
  text = inspect.getdoc(thing)
  assert {'Args', 'Returns', 'Raises', 'References'} <= set(sections(thing))
  assert re.search(r'arXiv:\d{4}\.\d{4,5}|section \d+\.\d+', text)
  assert 'dditive' in text
  assert re.search(r'`\[(B|\.\.\.)', text)
