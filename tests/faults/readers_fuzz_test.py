"""Damaged files, and such that lie, of every kind: read, or refused in a line.

`fuzz_readers` says what is asserted. It is a process of its own, since it
measures memory, and since what a package written in C does with a damaged file
may end the process.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

FUZZ = pathlib.Path(__file__).with_name('fuzz_readers.py')
NAMES = ('safetensors', 'gguf', 'tokenizer', 'config', 'idx', 'npy', 'txt',
         'jsonl', 'csv', 'parquet', 'records', 'checkpoint')


def fuzz(*flags):
  """Returns what came of each reader, by its name."""
  source = FUZZ.parents[2]
  done = subprocess.run(
      [sys.executable, str(FUZZ), *flags], capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': str(source), 'JAX_PLATFORMS': 'cpu',
           'RUST_BACKTRACE': '0'})
  assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
  results = [json.loads(line) for line in done.stdout.splitlines()]
  return {result['reader']: result for result in results}


def check(result, count):
  assert not result['faults'], result['faults']
  assert result['inputs'] >= count
  assert result['read'] + result['refused'] == result['inputs']
  # Else nothing was damaged, or nothing was read.
  assert result['refused'] > result['inputs'] / 3 and result['read']


@pytest.fixture(scope='module')
def short():
  return fuzz('--count=80')


@pytest.mark.parametrize('name', NAMES)
def test_a_damaged_file_is_read_or_refused(short, name):
  check(short[name], 80)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_ten_thousand_damaged_files_are_read_or_refused(name):
  result = fuzz('--count=10000', '--seed=2', f'--reader={name}')[name]
  print(result)
  check(result, 10000)
