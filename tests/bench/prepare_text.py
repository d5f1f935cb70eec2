r"""How fast texts are prepared, and how much memory that takes.

  python tests/bench/prepare_text.py --tokenizer=FOLDER --texts=FILE.jsonl
  python tests/bench/prepare_text.py --tokenizer=FOLDER --texts=FILE.jsonl \
      --megabytes=2000 --memory

The documents of the file are repeated, in random order, up to --megabytes.
Prints tokens a second of the data set `text`, from JSON lines to rows on disk,
and of the package `tokenizers` alone on the same documents in memory, on all
cores: the medians of interleaved rounds, and of their ratio.

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


def write(path: pathlib.Path, documents: list[str], megabytes: float) -> None:
  """Writes documents as JSON lines."""
  rng = random.Random(0)
  with open(path, 'w') as file:
    while file.tell() < megabytes * 1e6:
      file.write(json.dumps(dict(text=rng.choice(documents))) + '\n')


def read(path: str | pathlib.Path) -> list[str]:
  """Returns the documents of a file of JSON lines."""
  with open(path) as file:
    return [json.loads(line)['text'] for line in file]


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
  parser.add_argument('--texts', required=True)
  parser.add_argument('--megabytes', type=float, default=32)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--memory', action='store_true')
  flags = parser.parse_args()
  documents = read(flags.texts)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'train.jsonl')
    if flags.memory:
      for megabytes in (flags.megabytes / 10, flags.megabytes):
        write(path, documents, megabytes)
        peak = measure_memory(folder, flags.tokenizer)
        print(f'{path.stat().st_size / 1e6:.0f} MB: {peak:.0f} MiB at most')
      return
    write(path, documents, flags.megabytes)
    texts = read(path)
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
