"""A job on every format of texts, and one on every format of token ids.

Each is a mixture, so that one network is trained on all of them. Its rows are
those of the same texts as plain JSON lines.
"""

import csv
import gzip
import json

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from haikd.core import registry
from haikd.data import source

CONFIG = """
from haikd import config as config_lib

def get_config(variant=''):
  config = config_lib.base()
  config.steps = 2
  config.batch_size = 16
  config.data.source_dir = {source!r}
  config.data.data_dir = {source!r} + '/prepared'
  config.evaluation.split = {evaluated!r} + '/validation'
  config.evaluation.final = 'validation'
  config.evaluation.batch_size = 16
  config.plugins = ('my_bigram',)
  config.teacher.model = config.student.model = 'bigram'
  config.teacher.train.steps = 1
  {more}
  return config
"""

MODEL = """
import haikd
import haiku as hk

@haikd.register_model()
def bigram(inputs, *, is_training, num_classes, mask=None):
  tokens = inputs['tokens'] if isinstance(inputs, dict) else inputs
  return hk.Embed(num_classes, num_classes)(tokens)
"""

TEXTS = [' '.join('abcdefghij'[(i * j + j) % 10] for j in range(1, 4 + i % 5))
         for i in range(24)]


def table():
  return pyarrow.table(dict(text=TEXTS))


def write_jsonl(folder, split):
  (folder / f'{split}.jsonl').write_text(''.join(
      f'{json.dumps(dict(text=text))}\n' for text in TEXTS))


def write_csv(folder, split):
  with open(folder / f'{split}.csv', 'w', newline='') as file:
    csv.writer(file).writerows([['text'], *([text] for text in TEXTS)])


def write_tsv(folder, split):
  with gzip.open(folder / f'{split}.tsv.gz', 'wt', newline='') as file:
    writer = csv.writer(file, delimiter='\t')
    writer.writerows([['n', 'text'], *enumerate(TEXTS)])


def write_json(folder, split):
  (folder / f'{split}.JSON').write_text(
      json.dumps([dict(text=text) for text in TEXTS], indent=1))


def write_zstd(folder, split):
  with pyarrow.OSFile(str(folder / f'{split}.txt.zst'), 'wb') as sink, (
      pyarrow.CompressedOutputStream(sink, 'zstd')) as file:
    file.write('\n'.join(TEXTS).encode())


def write_shards(folder, split):
  for i in range(3):
    parquet.write_table(table().slice(8 * i, 8),
                        folder / f'{split}-0000{i}-of-00003.parquet')


def write_saved(folder, split):
  (folder / split).mkdir()
  name = 'data-00000-of-00001.arrow'
  with pyarrow.ipc.new_stream(folder / split / name, table().schema) as writer:
    writer.write_table(table())
  (folder / split / 'state.json').write_text(
      json.dumps(dict(_data_files=[dict(filename=name)], _split=split)))


WRITERS = dict(jsonl=write_jsonl, csv=write_csv, tsv=write_tsv, json=write_json,
               zstd=write_zstd, shards=write_shards, saved=write_saved)


@pytest.fixture
def start(run, tmp_path):
  (tmp_path / 'my_bigram.py').write_text(MODEL)
  with registry.models.temporary():
    yield run


def test_job_runs_on_a_mixture_of_all_formats_of_texts(start, words, tmp_path):
  options = dict(tokenizer=words, length=6, documents='line')
  rows = {}
  for name, write in WRITERS.items():
    folder = tmp_path / 'texts' / name
    folder.mkdir(parents=True)
    for split in ('train', 'validation'):
      write(folder, split)
    opened = source.open_source('text', 'train', options=options,
                                source_dir=str(folder),
                                data_dir=str(tmp_path / 'texts' / 'prepared'))
    rows[name] = [row['tokens'].tolist() for row in opened.__getitems__(
        range(len(opened)))]
  assert all(found == rows['jsonl'] for found in rows.values())

  weights = ', '.join(f'{name}=1' for name in WRITERS if name != 'csv')
  (tmp_path / 'texts.py').write_text(CONFIG.format(
      source=str(tmp_path / 'texts'), evaluated='csv', more=f"""
  config.data.name, config.data.options = 'text', {options!r}
  config.data.mixture = dict({weights}, csv=dict(
      weight=dict(kind='linear', start=1., end=0., steps=2)))
"""))
  code, out, err = start(config='texts.py')
  assert code == 0, err
  assert 'eval/csv/validation' in (tmp_path / 'run/metrics.jsonl').read_text()
  code, out, err = start('--mode=eval', '--config.data.mixture.jsonl=-1',
                         config='texts.py')
  assert code == 2 and 'config.data.mixture must have weights of 0 or' in err


def test_job_that_prepares_ahead_repeats_itself(start, words, tmp_path):
  for split in ('train', 'validation'):
    write_jsonl(tmp_path, split)
  options = dict(tokenizer=words, length=6, prepare='ahead')
  (tmp_path / 'ahead.py').write_text(CONFIG.format(
      source=str(tmp_path), evaluated='.', more=f"""
  config.evaluation.split = 'validation'
  config.log_every = 1
  config.data.name, config.data.options = 'text', {options!r}
"""))
  losses = []
  for workdir in ('first', 'again'):  # The second finds everything prepared.
    code, out, err = start(config='ahead.py', workdir=workdir)
    assert code == 0, err
    lines = (tmp_path / workdir / 'metrics.jsonl').read_text().splitlines()
    losses.append([row['loss'] for row in map(json.loads, lines)
                   if row['split'] == 'train'])
  assert losses[0] == losses[1] and len(losses[0]) == 2


def test_job_runs_on_a_mixture_of_all_formats_of_token_ids(start, tmp_path):
  ids = np.random.default_rng(0).integers(0, 40, 200)
  for name in ('array', 'nanogpt', 'megatron'):
    folder = tmp_path / 'tokens' / name
    folder.mkdir(parents=True)
    for split in ('train', 'validation'):
      if name == 'array':
        np.save(folder / f'{split}.npy', ids.astype('uint16'))
        continue
      ids.astype('uint16').tofile(folder / f'{split}.bin')
      if name == 'megatron':  # One sequence and one document, from 0 to 1.
        (folder / f'{split}.idx').write_bytes(
            b'MMIDIDX\0\0' + np.array([1], '<u8').tobytes() + bytes([8]) +
            np.array([1, 2], '<u8').tobytes() + np.array([200], '<i4').tobytes()
            + np.array([0, 0, 1], '<i8').tobytes())
  (tmp_path / 'tokens.py').write_text(CONFIG.format(
      source=str(tmp_path / 'tokens'), evaluated='array', more="""
  config.data.data_dir = None
  config.data.name = 'tokens'
  config.data.options = dict(length=8, vocabulary=40)
  config.data.mixture = dict(array=1, nanogpt=dict(
      options=dict(dtype='uint16')), megatron=2)
"""))
  code, out, err = start(config='tokens.py')
  assert code == 0, err
  code, out, err = start('--config.data.mixture.nanogpt.options.dtype=uint32',
                         config='tokens.py', workdir='other')
  assert code == 3 and 'must hold ids from 0 to vocabulary' in err
