"""README and docs: what they show runs, and what they name exists."""

import ast
import collections
import contextlib
import importlib.util
import pathlib
import re

import grain
import haiku as hk
import jax
import numpy
import pytest

import haikd
from haikd import config as config_lib
from haikd import library  # noqa: F401  Registers all there is.
from haikd.core import registry

ROOT = pathlib.Path(haikd.__file__).parents[1]
README = ROOT / 'README.md'
PAGES = (README, ROOT / 'CONTRIBUTING.md',
         *sorted((ROOT / 'docs').glob('*.md')))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def blocks(page, language):
  return [text for kind, text in BLOCK.findall(page.read_text())
          if kind == language]


def prose(page):
  """Returns the sentences of a page, without code, tables and lists' marks."""
  text = BLOCK.sub('\n\n', page.read_text())
  lines = ['' if re.match(r'\||#|    |\[\w+\]:', line) else line
           for line in text.splitlines()]
  for paragraph in re.split(r'\n\s*\n', '\n'.join(lines)):
    yield from re.split(r'(?<=[.!?:]) ', ' '.join(paragraph.split()))


@pytest.fixture
def fields():
  """The module that writes the reference of config fields."""
  spec = importlib.util.spec_from_file_location(
      'config_fields', ROOT / 'docs' / 'config_fields.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


SHOWN = [pytest.param(text, id=f'{page.name}-{number}') for page in PAGES
         for number, text in enumerate(blocks(page, 'python'))]


@pytest.mark.parametrize('text', SHOWN)
def test_python_that_is_shown_runs_and_makes_a_valid_config(
    text, fresh, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'tokens').mkdir()
  config = config_lib.base()
  x, animals = numpy.eye(100, 4), numpy.array(['cat', 'dog'] * 50)
  names = dict(
      grain=grain, haikd=haikd, hk=hk, jax=jax, jnp=jax.numpy, numpy=numpy,
      config=config,
      ids=numpy.arange(10), x=x, animals=animals, state={},
      params=dict(linear=dict(w=x)),
      data=haikd.data.from_arrays(**dict.fromkeys(
          ('train', 'validation', 'test'), dict(x=x, label=animals))))
  if 'haikd.train(' in text:
    config.steps = config.teacher.train.steps = 2
    config.batch_size = 40
  with contextlib.ExitStack() as stack:
    for known in (registry.models, registry.aligners, registry.metrics):
      stack.enter_context(known.temporary())
    if 'huber_features' in registry.losses.names():  # A config's own plugin.
      text = text.replace('register_loss(', 'register_loss(replace=True, ')
    exec(compile(text, 'docs', 'exec'), names)
    if 'get_config' in names:
      config = names['get_config']()
    config_lib.validate(config)
    if 'my_data' in names:
      source = names['my_data']('train', size=5)
      assert len(source) == 5 and source[0]['image'].shape == (8, 8, 1)


def test_readme_shows_the_plugin_that_a_config_runs():
  shown = ast.parse(blocks(README, 'python')[0])
  kept = ast.parse((ROOT / 'configs/my_pkg/losses.py').read_text())
  functions = [[ast.unparse(ast.fix_missing_locations(_bare(node)))
                for node in tree.body if isinstance(node, ast.FunctionDef)]
               for tree in (shown, kept)]
  assert functions[0] == functions[1]


def _bare(function):
  """Returns a function without its docstring."""
  if ast.get_docstring(function):
    function.body = function.body[1:]
  return function


@pytest.mark.parametrize('name', NAMES)
def test_paths_that_are_named_exist(name):
  page = ROOT / name
  text = page.read_text()
  named = set(re.findall(
      r'(?<![\w/.-])((?:configs|tests|haikd|launch|docs)/[\w/*-]+\.\w+)', text))
  missing = [path for path in named - {'configs/x.py'}
             if not list(ROOT.glob(path))]
  assert not missing
  for link in re.findall(r'\]\(([^)#:]+)(?:#[\w-]*)?\)', text):
    assert (page.parent / link).exists(), link


def test_citation_has_the_version():
  cited = re.search('^version: (.*)$', (ROOT / 'CITATION.cff').read_text(),
                    re.MULTILINE)
  assert cited and cited[1] == haikd.__version__


def test_readme_is_short():
  assert len(README.read_text().splitlines()) <= 180


def test_no_sentence_stands_twice():
  counts = collections.Counter(
      sentence for page in PAGES for sentence in prose(page)
      if len(sentence.split()) > 5)
  assert [text for text, count in counts.items() if count > 1] == []


def flattened(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, config_lib.ConfigDict) and value:
      yield from flattened(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def test_every_field_of_a_config_is_described_with_its_default(fields):
  described = {}
  for title, rows in fields.sections(fields.read()).items():
    places = {shared: at for shared, at in fields.SHARED.values()}
    for place in places.get(title, (title,)):
      for row in rows:
        path = f'{place}.{row.name}' if place else row.name
        described[path] = row
  for name, value in flattened(config_lib.base()):
    if name in ('losses', 'assistants', 'teacher.records'):
      continue
    row = described.pop(name)
    assert row.comment, f'{name} has no comment above it'
    default = ast.literal_eval(row.default)
    assert default == (value.to_dict() if hasattr(value, 'to_dict') else value)
  for place, entry in (('losses.<term>', config_lib.term()),
                       ('teacher.records', config_lib.records()),
                       ('data.mixture.<name>', config_lib.component({}))):
    for name, value in entry.items():
      row = described.pop(f'{place}.{name}')
      assert row.comment, f'{place}.{name} has no comment above it'
      default = ast.literal_eval(row.default)
      assert default == (
          value.to_dict() if hasattr(value, 'to_dict') else value)
  assert not described


def test_table_of_rooms_names_every_room():
  page = (ROOT / 'docs/how_it_works.md').read_text()
  rooms = re.findall(r'^\| `(\w+)` \|', page, re.MULTILINE)
  there = {path.stem for path in (ROOT / 'haikd').iterdir()
           if not path.name.startswith('_') and
           not path.is_symlink() and (path.is_dir() or path.suffix == '.py')}
  assert set(rooms) == there and len(rooms) == len(there)


@pytest.mark.parametrize('name', NAMES)
def test_commands_name_flags_that_are_there(name):
  from haikd.run import launch_flags
  known = set(launch_flags.define())
  for text in blocks(ROOT / name, 'bash'):
    for line in text.splitlines():
      if 'haikd.launch' in line:
        flags = re.findall(r' --(\w+)', line.partition('haikd.launch')[2])
        assert set(flags) <= known | {'config'}, line
