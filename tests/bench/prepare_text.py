r"""How fast texts are prepared, and how much memory that takes.

  python tests/bench/prepare_text.py --tokenizer=FOLDER --texts=FILE.jsonl
  python tests/bench/prepare_text.py --tokenizer=FOLDER --texts=FILE.jsonl \
      --dataset=chat
  python tests/bench/prepare_text.py --tokenizer=FOLDER --texts=FILE.jsonl \
      --prune
  python tests/bench/prepare_text.py --tokenizer=FOLDER --texts=FILE.jsonl \
      --paragraphs
  python tests/bench/prepare_text.py --tokenizer=FOLDER --texts=FILE.jsonl \
      --megabytes=2000 --memory

The documents of the file are repeated, in random order, up to --megabytes. With
--paragraphs each of their paragraphs is a document. Data sets other than `text`
always get paragraphs: one a record for `masked_text`, two for `completions`,
and for `chat` four, between roles in the notation of ChatML. The tokenizer
needs a mask token for `masked_text`, and a chat template for `chat` that writes
ChatML.

Prints tokens a second of the data set, from JSON lines to rows on disk, and of
the package `tokenizers` alone on the same texts in memory, on all cores: the
medians of interleaved rounds, and of their ratio; then the same of a second of
the cores' time.

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
import tempfile
import time

import numpy as np
import tokenizers

from haikd.data import source

# The number of paragraphs in a record, and of tokens in a row.
PARAGRAPHS = dict(completions=2, chat=4, masked_text=1)
LENGTHS = dict(text=1024, completions=1024, chat=1024, masked_text=256)
ROLES = ('system', 'user', 'assistant', 'user', 'assistant')


def records(documents: list[str], dataset: str) -> list[dict]:
  """Returns documents as records of a data set."""
  if dataset == 'text':
    return [dict(text=document) for document in documents]
  size = PARAGRAPHS[dataset]
  parts = '\n\n'.join(documents).split('\n\n')
  groups = zip(*(parts[i::size] for i in range(size)))
  if dataset == 'masked_text':
    return [dict(text=text) for text, in groups]
  if dataset == 'completions':
    return [dict(prompt=first, completion=' ' + second)
            for first, second in groups]
  return [dict(messages=[dict(role=role, content=content) for role, content
                         in zip(ROLES, ('Answer as Jane Austen.', *group))])
          for group in groups]


def text_of(record: dict) -> str:
  """Returns the text that is tokenised of a record."""
  if 'messages' in record:
    return ''.join(f'<|im_start|>{each["role"]}\n{each["content"]}<|im_end|>\n'
                   for each in record['messages'])
  return ''.join(record.values())


def write(path: pathlib.Path, choices: list[dict], megabytes: float) -> None:
  """Writes random records as JSON lines."""
  rng = random.Random(0)
  with open(path, 'w') as file:
    while file.tell() < megabytes * 1e6:
      file.write(json.dumps(rng.choice(choices)) + '\n')


def read(path: str | pathlib.Path) -> list[dict]:
  """Returns the records of a file of JSON lines."""
  with open(path) as file:
    return [json.loads(line) for line in file]


def clocks() -> np.ndarray:
  """Returns the seconds that have passed, and those of the cores' time."""
  return np.array([time.perf_counter(), time.process_time()])


def prepare(folder: str, tokenizer: str, dataset: str,
            prune: bool) -> np.ndarray:
  """Prepares the file in a folder; returns its tokens a second, by clock."""
  prepared = tempfile.mkdtemp(dir=folder)
  options = dict(tokenizer=tokenizer, length=LENGTHS[dataset])
  if prune:
    options['prune'] = True
  start = clocks()
  opened = source.open_source(dataset, 'train', options=options,
                              source_dir=folder, data_dir=prepared)
  seconds = clocks() - start
  shutil.rmtree(prepared)
  return opened.info['tokens'] / seconds


def encode(texts: list[str], tokenizer: str) -> np.ndarray:
  """Encodes texts in memory; returns tokens a second, by clock."""
  loaded = tokenizers.Tokenizer.from_file(f'{tokenizer}/tokenizer.json')
  loaded.no_truncation()
  loaded.no_padding()
  start, count = clocks(), 0
  for i in range(0, len(texts), 1000):
    count += sum(map(len, loaded.encode_batch_fast(texts[i:i + 1000])))
  return count / (clocks() - start)


def _memory(folder, tokenizer, dataset, prune, answers):
  prepare(folder, tokenizer, dataset, prune)
  answers.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure_memory(folder: str, tokenizer: str, dataset: str,
                   prune: bool) -> float:
  """Returns the largest resident size of a preparation, in MiB."""
  context = multiprocessing.get_context('spawn')
  answers = context.Queue()
  process = context.Process(target=_memory,
                            args=(folder, tokenizer, dataset, prune, answers))
  process.start()
  peak = answers.get()
  process.join()
  return peak


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--tokenizer', required=True)
  parser.add_argument('--texts', required=True)
  parser.add_argument('--dataset', choices=LENGTHS, default='text')
  parser.add_argument('--megabytes', type=float, default=32)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--memory', action='store_true')
  parser.add_argument('--prune', action='store_true')
  parser.add_argument('--paragraphs', action='store_true')
  flags = parser.parse_args()
  documents = [record['text'] for record in read(flags.texts)]
  if flags.paragraphs:
    documents = [paragraph for document in documents
                 for paragraph in document.split('\n\n') if paragraph]
  choices = records(documents, flags.dataset)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'train.jsonl')
    if flags.memory:
      for megabytes in (flags.megabytes / 10, flags.megabytes):
        write(path, choices, megabytes)
        peak = measure_memory(folder, flags.tokenizer, flags.dataset,
                              flags.prune)
        print(f'{path.stat().st_size / 1e6:.0f} MB: {peak:.0f} MiB at most')
      return
    write(path, choices, flags.megabytes)
    texts = [text_of(record) for record in read(path)]
    # Imports, and digests the file.
    prepare(folder, flags.tokenizer, flags.dataset, flags.prune)
    rates = np.array([  # [rounds, side, clock]
        [prepare(folder, flags.tokenizer, flags.dataset, flags.prune),
         encode(texts, flags.tokenizer)] for _ in range(flags.rounds)])
  for clock, unit in enumerate(('second', "second of the cores' time")):
    ours, alone = rates[:, :, clock].T
    ratios = ours / alone
    print(f'{os.cpu_count()} cores: {np.median(ours):,.0f} tokens a {unit} '
          f'prepared, {np.median(alone):,.0f} encoded; ratio '
          f'{np.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})')


if __name__ == '__main__':
  main()
