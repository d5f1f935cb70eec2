"""A room imports only rooms of a lower tier, and collectives stay in two."""

import ast
import pathlib

import pytest

import haikd

ROOT = pathlib.Path(haikd.__file__).parent

# From the ground up; a room stands in the first line that it fits.
TIERS = (
    ('visibility',),
    ('base', 'checks', 'rounds', 'varying', 'areas'),
    ('paths',),
    ('validation', 'registry', 'masking', 'tapping', 'files', 'names',
     'cluster', 'watch', 'tokenizer_gguf'),
    ('config', 'distributed', 'tokenizer', 'attention'),
    ('losses', 'models', 'data', 'interop', 'config_file'),
    ('capture', 'align', 'precision', 'optimizer', 'metrics', 'console',
     'remat'),
    ('network', 'placement'),
    ('terms',),
    ('pairing', 'comparison'),
    ('sharding', 'teacher'),
    ('objective',),
    ('assembly',),
    ('step',),
    ('evaluate', 'stored', 'report'),
    ('program', 'checkpoint', 'fingerprint', 'writer'),
    ('pretrained', 'workdir'),
    ('trainer', 'plan'),
    ('parts',),
    ('job', 'exporting'),
    ('repeats',),
    ('launch', 'bench'),
)
TIER = {room: tier for tier, rooms in enumerate(TIERS) for room in rooms}

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


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_room_imports_only_lower_tiers(path):
  room = room_of(path)
  for other in imported_rooms(ast.parse(path.read_text())):
    assert other == room or TIER[other] < TIER[room], (
        f'{room} (tier {TIER[room]}) imports {other} (tier {TIER[other]})')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_collectives_stay_in_step_and_sharding(path):
  if room_of(path) in ('step', 'sharding'):
    return
  used = {
      node.attr for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.Attribute)
  }
  if room_of(path) == 'varying':  # A cast of a type moves nothing.
    used.discard('pcast')
  assert not used & set(COLLECTIVES)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_room_is_not_two_rooms(path):
  assert len(path.read_text().splitlines()) <= 320
