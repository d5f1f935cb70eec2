"""Rooms import lower floors only, and collectives are in two files only."""

import ast
import graphlib
import pathlib

import pytest

import haikd

ROOT = pathlib.Path(haikd.__file__).parent

# The lowest floor first. A module directly in haikd/ is a room by itself.
FLOORS = (
    ('core',),
    ('config', 'processes', 'attention'),
    ('storage', 'losses', 'align', 'models'),
    ('data', 'interop', 'network', 'metrics', 'served', 'teacher_records',
     'testing'),
    ('objective',),
    ('engine',),
    ('report',),
    ('run',),
    ('plan', 'bench'),
    ('launch', 'library', 'compare', 'check'),
    ('__main__',),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

COLLECTIVES = ('psum', 'pmean', 'pmax', 'pmin', 'all_gather', 'all_to_all',
               'psum_scatter', 'ppermute', 'pcast', 'axis_index', 'shard_map')

FILES = [p for p in sorted(ROOT.rglob('*.py')) if p.name != '__init__.py' or
         p.parent != ROOT]


def room_of(path):
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def imported_rooms(tree):
  """Yields the rooms of haikd that a module imports."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module:
      parts = node.module.split('.')
      if parts[0] == 'haikd':
        yield from parts[1:2] or [alias.name for alias in node.names]
    if isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name.startswith('haikd.'):
          yield alias.name.split('.')[1]


def imported_modules(tree):
  """Yields `haikd.room.module` for each module of haikd that is imported."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module.startswith('haikd'):
        yield node.module
        yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_room_imports_only_lower_floors(path):
  room = room_of(path)
  for other in imported_rooms(ast.parse(path.read_text())):
    assert other == room or FLOOR[other] < FLOOR[room], (
        f'{room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})')


def test_modules_have_no_import_cycle():
  imports = {}
  for path in FILES:
    name = '.'.join(path.relative_to(ROOT.parent).with_suffix('').parts)
    if path.name != '__init__.py':  # It re-exports names of its room.
      imports[name] = set(imported_modules(ast.parse(path.read_text())))
  graphlib.TopologicalSorter(imports).prepare()  # Raises CycleError.


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_collectives_are_in_two_files_only(path):
  name = str(path.relative_to(ROOT))
  if name in ('engine/step.py', 'engine/collectives.py'):
    return
  used = {
      node.attr for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.Attribute)
  }
  if name == 'core/mesh_context.py':  # A cast of a type moves no data.
    used.discard('pcast')
  assert not used & set(COLLECTIVES)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_has_at_most_300_lines(path):
  assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_private_api_of_jax_is_used_in_one_file_only(path):
  if path.name != 'jax_internals.py':
    modules = ast.walk(ast.parse(path.read_text()))
    names = {node.module for node in modules
             if isinstance(node, ast.ImportFrom) and node.module}
    private = ('jax._src', 'jax.interpreters')
    assert not [name for name in names if name.startswith(private)]
