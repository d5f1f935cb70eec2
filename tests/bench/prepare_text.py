r"""How fast texts are prepared, and how much memory that takes.

  python tests/bench/prepare_text.py --tokenizer=FOLDER --megabytes=32
  python tests/bench/prepare_text.py --tokenizer=FOLDER --megabytes=2000 \
      --memory

Prints tokens a second of the data set `text` on a file of JSON lines, and of
the package `tokenizers` alone on the same texts in memory (in its own batches,
on all cores): the medians of interleaved rounds, and of their ratio. The texts
are words of the tokenizer's vocabulary in random order.

With --memory, the largest resident size is printed for a tenth of the file and
for all of it, each in a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import statistics
import tempfile
import time

import tokenizers

from haikd.data import source

_CHARACTERS = 2000  # Of a document.


def write(path: pathlib.Path, tokenizer: str, megabytes: float) -> None:
  """Writes random documents as JSON lines."""
  vocabulary = tokenizers.Tokenizer.from_file(
      f'{tokenizer}/tokenizer.json').get_vocab()
  words = sorted(word.strip('Ġ▁') for word in vocabulary)
  words = [word for word in words if word.isalpha() and word.isascii()]
  rng = random.Random(0)
  with open(path, 'w') as file:
    while file.tell() < megabytes * 1e6:
      text, size = [], 0
      while size < _CHARACTERS:
        text.append(rng.choice(words))
        size += len(text[-1]) + 1
      file.write(json.dumps(dict(text=' '.join(text))) + '\n')


def prepare(folder: str, tokenizer: str) -> tuple[int, float]:
  """Prepares the file in a folder; returns its tokens, and seconds."""
  prepared = tempfile.mkdtemp(dir=folder)
  start = time.perf_counter()
  opened = source.open_source(
      'text', 'train', options=dict(tokenizer=tokenizer, length=1024),
      source_dir=folder, data_dir=prepared)
  seconds = time.perf_counter() - start
  shutil.rmtree(prepared)
  return opened.info['tokens'], seconds


def encode(texts: list[str], tokenizer: str) -> tuple[int, float]:
  """Encodes texts in memory; returns the number of tokens, and seconds."""
  loaded = tokenizers.Tokenizer.from_file(f'{tokenizer}/tokenizer.json')
  loaded.no_truncation()
  loaded.no_padding()
  start = time.perf_counter()
  count = 0
  for i in range(0, len(texts), 1000):
    count += sum(map(len, loaded.encode_batch_fast(texts[i:i + 1000])))
  return count, time.perf_counter() - start


def _memory(folder, tokenizer, answers):
  prepare(folder, tokenizer)
  answers.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure_memory(folder: str, tokenizer: str) -> float:
  """Returns the largest resident size of a preparation, in MiB."""
  context = multiprocessing.get_context('spawn')
  answers = context.Queue()
  process = context.Process(target=_memory, args=(folder, tokenizer, answers))
  process.start()
  peak = answers.get()
  process.join()
  return peak


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--tokenizer', required=True)
  parser.add_argument('--megabytes', type=float, default=32)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--memory', action='store_true')
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'train.jsonl')
    if flags.memory:
      for megabytes in (flags.megabytes / 10, flags.megabytes):
        write(path, flags.tokenizer, megabytes)
        peak = measure_memory(folder, flags.tokenizer)
        print(f'{path.stat().st_size / 1e6:.0f} MB: {peak:.0f} MiB at most')
      return
    write(path, flags.tokenizer, flags.megabytes)
    with open(path) as file:
      texts = [json.loads(line)['text'] for line in file]
    prepare(folder, flags.tokenizer)  # Imports, and digests the file.
    rates = []
    for _ in range(flags.rounds):
      tokens, seconds = prepare(folder, flags.tokenizer)
      rates.append([tokens / seconds])
      tokens, seconds = encode(texts, flags.tokenizer)
      rates[-1].append(tokens / seconds)
    ratios = [ours / alone for ours, alone in rates]
    ours, alone = map(statistics.median, zip(*rates))
    print(f'{os.cpu_count()} cores: {ours:,.0f} tokens a second prepared, '
          f'{alone:,.0f} encoded; ratio {statistics.median(ratios):.2f} '
          f'({min(ratios):.2f}-{max(ratios):.2f})')


if __name__ == '__main__':
  main()
