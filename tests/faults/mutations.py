"""Damages files: bytes, lengths, and values of JSON, all from one seed."""

import json
import random
import struct

# What a length or an offset is overwritten with.
EDGES = (0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40,
         2**62, 2**63 - 1, 2**63, 2**64 - 1)
# What a value of JSON is replaced with.
VALUES = (None, True, False, 0, -1, 1.9, -0.0, 1e308, 2**31, 2**63, 10**30, '',
          '12', 'x' * 300, '../../etc/passwd', '\ud800', '\0', [], {}, [[]],
          [0], {'': None}, [None] * 3, 'F32', [2**40], {'content': ['x']})
TEXTS = (b'NaN', b'1e999', b'-', b'[' * 5000, b'{"a":' * 5000, b'"\\ud800"',
         b'1' * 5000, b'\xff\xfe', b'\0' * 8, b'\n' * 50, b'"', b',' * 20)


def mutated(content: bytes, rng: random.Random) -> bytes:
  """Returns content with one to four kinds of damage."""
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    content = rng.choice(_MUTATIONS)(content, rng)
  return content


def mutated_json(content: bytes, rng: random.Random) -> bytes:
  """Returns JSON with other values, keys that are twice, or damaged bytes."""
  if rng.random() < 0.3:
    return mutated(content, rng)
  try:
    value = json.loads(content)
  except ValueError:
    return mutated(content, rng)
  for _ in range(rng.choice((1, 1, 2, 3))):
    value = _with_other_value(value, rng)
  written = json.dumps(value, ensure_ascii=True).encode()
  if rng.random() < 0.1:  # A key twice.
    written = written.replace(b'{"', b'{"a": 1, "a": 2, "', 1)
  return written


def mutated_lines(content: bytes, rng: random.Random) -> bytes:
  """Returns lines, one of which is damaged."""
  lines = content.split(b'\n')
  place = rng.randrange(len(lines))
  mutate = mutated_json if rng.random() < 0.5 else mutated
  lines[place] = mutate(lines[place], rng)
  return b'\n'.join(lines)


def mutated_header(content: bytes, rng: random.Random) -> bytes:
  """Returns a safetensors file with a damaged header of the right length."""
  if rng.random() < 0.4:
    return mutated(content, rng)
  length = int.from_bytes(content[:8], 'little')
  header = mutated_json(content[8:8 + length], rng)
  return struct.pack('<Q', len(header)) + header + content[8 + length:]


def _with_other_value(value, rng):
  """Returns a value in which one node is another."""
  if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    changed = value.copy()
    if isinstance(value, dict) and rng.random() < 0.15:
      changed[rng.choice(('x' * 300, '', 'dtype', '../x'))] = changed.pop(key)
    elif rng.random() < 0.1:
      del changed[key]
    else:
      changed[key] = _with_other_value(value[key], rng)
    return changed
  return rng.choice(VALUES)


def _flip(content, rng):
  changed = bytearray(content)
  for _ in range(rng.choice((1, 1, 3, 20))):
    if changed:
      changed[_place(changed, rng)] = rng.randrange(256)
  return bytes(changed)


def _overwrite_number(content, rng):
  width = rng.choice((4, 8))
  if len(content) < width:
    return content
  start = min(_place(content, rng), len(content) - width)
  if rng.random() < 0.7:
    start -= start % 4
  number = rng.choice(EDGES) % 2**(8 * width)
  order = rng.choice(('little', 'big'))
  return (content[:start] + number.to_bytes(width, order) +
          content[start + width:])


def _cut(content, rng):
  return content[:_place(content, rng)] if content else content


def _delete(content, rng):
  start = _place(content, rng) if content else 0
  return content[:start] + content[start + rng.choice((1, 4, 8, 64)):]


def _insert(content, rng):
  start = _place(content, rng) if content else 0
  added = rng.choice((rng.randbytes(rng.choice((1, 8, 100))),
                      rng.choice(TEXTS), content[:64]))
  return content[:start] + added + content[start:]


def _repeat(content, rng):
  start = _place(content, rng) if content else 0
  end = start + rng.choice((1, 8, 100))
  again = content[start:end] * rng.choice((1, 50))
  return content[:end] + again + content[end:]


def _nothing(content, rng):
  del content
  return rng.choice((b'', b'\0', b'version https://git-lfs.github.com/spec/v1'))


_MUTATIONS = (_flip, _flip, _overwrite_number, _overwrite_number,
              _overwrite_number, _cut, _delete, _insert, _repeat, _nothing)


def _place(content, rng):
  """Returns an index; headers, at the start and the end, are chosen more."""
  size = len(content)
  near = min(size, rng.choice((64, 512, size)))
  place = rng.randrange(max(near, 1))
  return size - 1 - place if rng.random() < 0.25 else place
