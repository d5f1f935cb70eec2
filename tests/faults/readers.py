"""The readers of files: what they read undamaged, and what nobody should give.

`seeds` are files as they should be, `bombs` such that lie about their size or
hold far more than they seem to.
"""

import gzip
import io
import itertools
import json
import pathlib
import struct
from typing import Callable, NamedTuple, Sequence

import gguf as gguf_package
import jax.numpy as jnp
import numpy as np
from pyarrow import parquet
import pyarrow as pa

from haikd.core import base
from haikd.data import archives
from haikd.data import idx as idx_lib
from haikd.data import reading as reading_lib
from haikd.data.records import file_names
from haikd.data.tables import table_files
from haikd.data.text import text_lines
from haikd.data.text import token_formats
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.interop import gguf
from haikd.interop import pretrained_source
from haikd.interop import tensors
import haikd.models  # noqa: F401  Registers them.
from haikd.storage import checkpoint
from haikd.storage import checkpointer as checkpointer_lib
from haikd.teacher_records import folder as folder_lib
from haikd.teacher_records import recipe as recipe_lib
from haikd.teacher_records import records as records_lib

READING = reading_lib.Reading(memory_mib=64)
GOLDEN = pathlib.Path(__file__).parents[1] / 'interop/golden'
ROWS = 20

Files = dict[str, bytes]


class Reader(NamedTuple):
  """How a kind of files is read, files of the kind, and the stated limit."""

  read: Callable[[pathlib.Path], None]
  seeds: Callable[[pathlib.Path], Sequence[Files]]
  bombs: Callable[[pathlib.Path], Sequence[Files]] = lambda folder: ()
  is_damaged: Callable[[str], bool] = lambda name: True
  limit: int = READING.memory_bytes


def touch(array):
  """Reads all of an array, which may be mapped."""
  np.asarray(array).tobytes()


# safetensors


def read_safetensors(folder):
  reader = tensors.Safetensors(folder)
  for name in reader.shapes:
    touch(reader.read(name, np.dtype(np.float32)))


def safetensors_file(header, data=b'\0' * 48):
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  return struct.pack('<Q', len(header)) + header + data


def safetensors_seeds(folder):
  entry = lambda begin, end: dict(
      dtype='F32', shape=[(end - begin) // 4], data_offsets=[begin, end])
  file = safetensors_file(dict(a=entry(0, 24), b=entry(24, 48),
                               __metadata__=dict(format='pt')))
  index = dict(weight_map=dict(a='x.safetensors', b='x.safetensors'))
  return [{tensors.WEIGHTS: file},
          {tensors.INDEX: json.dumps(index).encode(), 'x.safetensors': file}]


def safetensors_bombs(folder):
  entry = dict(dtype='F32', shape=[12], data_offsets=[0, 48])
  headers = [
      dict(a={**entry, **change}) for change in (
          dict(shape='12'), dict(shape=[12.9]), dict(data_offsets=[0.0, 48.0]),
          dict(shape=[2**32, 2**32]), dict(shape=[2**40], dtype='U8'),
          dict(data_offsets=[0, 2**40]), dict(shape=[-12]))]
  text = json.dumps(entry)
  headers += [f'{{"a":{text},"a":{text}}}'.encode(), b'[' * 10**6,
              b'{"a":' * 10**6]
  files = [{tensors.WEIGHTS: safetensors_file(x)} for x in headers]
  files.append({tensors.WEIGHTS: struct.pack('<Q', 2**62) + b'{}'})
  for name in ('x' * 300, '../x', '', '.', '\0'):
    files.append({tensors.INDEX: json.dumps(
        dict(weight_map=dict(a=name))).encode()})
  return files


# GGUF


def read_gguf(folder):
  path = folder / 'model.gguf'
  reader = gguf.Gguf(path)
  for name in reader.shapes:
    touch(reader.read(name, np.dtype(np.float32)))
  pretrained_source.describe(f'gguf:{path}')
  loaded = tokenizer_lib.load(f'gguf:{path}')
  loaded.encode_batch(['ab ba'])


def gguf_seeds(folder):
  path = folder / 'seed.gguf'
  writer = gguf_package.GGUFWriter(path, 'llama')
  writer.add_block_count(1)
  writer.add_embedding_length(32)
  writer.add_feed_forward_length(32)
  writer.add_head_count(2)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('gpt-2')
  writer.add_token_list(['a', 'b', 'ab', '<s>'])
  writer.add_token_types([1, 1, 1, 3])
  writer.add_token_merges(['a b'])
  writer.add_bos_token_id(3)
  values = np.arange(4 * 32, dtype=np.float32).reshape(4, 32)
  writer.add_tensor('token_embd.weight', values)
  quantised = gguf_package.GGMLQuantizationType.Q8_0
  writer.add_tensor('output.weight', gguf_package.quantize(values, quantised),
                    raw_dtype=quantised)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return [{'model.gguf': path.read_bytes()}]


def gguf_bombs(folder):
  text = lambda x: struct.pack('<Q', len(x)) + x
  head = lambda tensors, keys: b'GGUF' + struct.pack('<IQQ', 3, tensors, keys)
  array = lambda kind, count: (
      head(0, 1) + text(b'k') + struct.pack('<IIQ', 9, kind, count))
  nested = head(0, 1) + text(b'k') + struct.pack('<I', 9) + struct.pack(
      '<IQ', 9, 1) * 10**5
  contents = [
      array(0, 2**40) + b'\0' * 16, array(8, 2**40), array(9, 2**62), nested,
      head(2**60, 0), head(0, 2**60), head(0, 1) + struct.pack('<Q', 2**63),
      # A gigabyte that is claimed, and one of empty texts that is not.
      array(8, 2**20) + b'\0' * 8 * 2**20,
      array(12, 2**21) + b'\0' * 8 * 2**21,
      head(1, 0) + text(b'w') + struct.pack('<IQQIQ', 2, 2**40, 2**20, 0, 0),
      head(1, 0) + text(b'w') + struct.pack('<I', 2**31),
      head(1, 0) + text(b'w') + struct.pack('<IQIQ', 1, 8, 0, 2**62)]
  return [{'model.gguf': content} for content in contents]


# Tokenizers


def read_tokenizer(folder):
  loaded = tokenizer_lib.load(str(folder))
  encoded = loaded.encode_batch(['ab ba\n<s>', 'Ünïcode 12', ''])
  loaded.encode_spans(['ab ba'])
  loaded.decode(encoded[0].ids)
  loaded.canonical()


def tokenizer_seeds(folder):
  split = lambda regex: dict(type='Split', pattern=dict(Regex=regex),
                             behavior='Isolated', invert=False)
  byte_level = dict(type='ByteLevel', add_prefix_space=False,
                    trim_offsets=True, use_regex=False)
  added = [dict(id=3, content='<s>', special=True, normalized=False,
                lstrip=False, rstrip=False, single_word=False)]
  common = dict(version='1.0', truncation=None, padding=None,
                added_tokens=added)
  bpe = dict(
      common, normalizer=dict(type='NFC'),
      pre_tokenizer=dict(type='Sequence', pretokenizers=[
          split(r'\p{N}{1,3}|\s+(?!\S)|\p{L}+'), byte_level]),
      post_processor=dict(
          type='TemplateProcessing',
          single=[dict(SpecialToken=dict(id='<s>', type_id=0)),
                  dict(Sequence=dict(id='A', type_id=0))],
          pair=[dict(Sequence=dict(id='A', type_id=0)),
                dict(Sequence=dict(id='B', type_id=1))],
          special_tokens={'<s>': dict(id='<s>', ids=[3], tokens=['<s>'])}),
      decoder=byte_level,
      model=dict(type='BPE', dropout=None, unk_token=None,
                 continuing_subword_prefix=None, end_of_word_suffix=None,
                 fuse_unk=False, byte_fallback=False, ignore_merges=False,
                 vocab=dict(a=0, b=1, ab=2), merges=[['a', 'b']]))
  pieces = dict(
      common, normalizer=dict(
          type='BertNormalizer', clean_text=True, handle_chinese_chars=True,
          strip_accents=None, lowercase=True),
      pre_tokenizer=dict(type='BertPreTokenizer'), post_processor=None,
      decoder=dict(type='WordPiece', prefix='##', cleanup=True),
      model=dict(type='WordPiece', unk_token='[UNK]',
                 continuing_subword_prefix='##', max_input_chars_per_word=100,
                 vocab={'[UNK]': 0, 'a': 1, '##b': 2}))
  unigram = dict(
      common, normalizer=None, pre_tokenizer=dict(
          type='Metaspace', replacement='▁', prepend_scheme='always',
          split=True),
      post_processor=None, decoder=None, model=dict(
          type='Unigram', unk_id=0, vocab=[['<unk>', 0.0], ['▁a', -1.0],
                                           ['b', -2.0]], byte_fallback=False))
  config = json.dumps(dict(
      bos_token='<s>', eos_token=dict(content='<s>'), model_max_length=512,
      chat_template='{{ messages }}')).encode()
  special = json.dumps(dict(pad_token=dict(content='<s>'))).encode()
  return [{'tokenizer.json': json.dumps(x).encode(),
           'tokenizer_config.json': config, 'special_tokens_map.json': special}
          for x in (bpe, pieces, unigram)]


def tokenizer_bombs(folder):
  seed = tokenizer_seeds(folder)[0]
  definition = json.loads(seed['tokenizer.json'])
  files = []
  for regex in ('(a+)+$', '(' * 5000, '((((a{1,99}){1,99}){1,99}){1,99}){1,99}',
                '(?<=a*)', '[', '\\'):
    definition['pre_tokenizer']['pretokenizers'][0]['pattern'] = dict(
        Regex=regex)
    files.append({**seed, 'tokenizer.json': json.dumps(definition).encode()})
  for content in (b'[' * 10**6, b'{"a":' * 10**6, b'null', b'[]'):
    files.append({**seed, 'tokenizer.json': content})
    files.append({**seed, 'tokenizer_config.json': content})
  for token in ([], ['<s>'], dict(a=1), 3, dict(content=3)):
    files.append({**seed, 'tokenizer_config.json': json.dumps(
        dict(eos_token=token)).encode()})
  return files


# Folders of models


def read_model(folder):
  pretrained_source.describe(f'hf:{folder}')
  pretrained_source.with_prefix(str(folder))


def model_seeds(folder):
  return [{name: (GOLDEN / kind / name).read_bytes()
           for name in ('config.json', tensors.WEIGHTS)}
          for kind in ('bert', 'bert_classification', 'deit', 'gpt2', 'llama',
                       'llama_yarn', 'gemma3')]


def model_bombs(folder):
  seed = model_seeds(folder)[0]
  config = json.loads(seed['config.json'])
  changes = [dict(hidden_size=2**62), dict(num_hidden_layers=10**9),
             dict(num_attention_heads=0), dict(vocab_size=2**63)]
  return [{**seed, 'config.json': content} for content in (
      b'[' * 10**6, *(json.dumps({**config, **x}).encode() for x in changes))]


# Arrays


def read_idx(folder):
  for path in folder.iterdir():
    idx_lib.read(path, rank=3, reading=READING)


def idx_file(shape, content):
  return bytes((0, 0, 8, len(shape))) + struct.pack(
      f'>{len(shape)}I', *shape) + content


def idx_seeds(folder):
  content = idx_file((2, 3, 4), bytes(range(24)))
  return [{'images': content}, {'images.gz': gzip.compress(content)}]


def idx_bombs(folder):
  return [
      {'images.gz': gzip.compress(idx_file((128, 1024, 1024), bytes(2**27)),
                                  1)},
      {'images.gz': gzip.compress(idx_file((2, 3, 4), bytes(2**27)), 1)},
      {'images': idx_file((2**32 - 1,) * 3, b'')}]


def read_npy(folder):
  for path in folder.iterdir():
    if path.suffix == '.npz':
      archives._read(path, READING)
    elif path.suffix != '.idx':
      ids = token_formats.read(path, None).ids
      touch(ids)


def npy_file(array):
  file = io.BytesIO()
  np.save(file, array, allow_pickle=True)
  return file.getvalue()


def npz_file(**arrays):
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  return file.getvalue()


def npy_seeds(folder):
  ids = np.arange(40, dtype=np.uint16)
  megatron = b'MMIDIDX\0\0' + struct.pack('<QBQQ', 1, 8, 2, 3)
  megatron += struct.pack('<2i', 30, 10) + struct.pack('<2q', 0, 60)
  megatron += struct.pack('<3q', 0, 1, 2)
  header = np.zeros(256, '<i4')
  header[:3] = 20240520, 1, 40
  return [{'train.npy': npy_file(ids)},
          {'train.npz': npz_file(x=np.ones((4, 3)), label=np.arange(4))},
          {'train.bin': ids.tobytes(), 'train.idx': megatron},
          {'train.bin': header.tobytes() + ids.tobytes()}]


def npy_bombs(folder):
  header = (b"{'descr': '<u2', 'fortran_order': False, 'shape': (%d,), }" %
            2**60).ljust(117) + b'\n'
  lying = b'\x93NUMPY\x01\0v\0' + header
  return [{'train.npy': lying},
          {'train.npy': npz_file(x=np.arange(3))},
          {'train.npy': npy_file(np.array([{}, 1], object))},
          {'train.npz': npy_file(np.arange(3))},
          {'train.npz': npy_file(np.array([{}, 1], object))},
          {'train.npz': npz_file(x=np.zeros(2**27, np.uint8))}]


# Records


def read_lines(folder):
  for path in folder.iterdir():
    if name := file_names.parse(path):
      # Of a million rows in a few bytes, these are enough.
      for _ in itertools.islice(text_lines.read(
          path, name, documents='paragraph', field='text', reading=READING),
                                10**4):
        pass


def read_table(folder):
  read_lines(folder)
  files = table_files.TableFiles(str(folder), 3, READING)
  for split in files.splits:
    names = files.columns(split)
    for labels in ((), names[-1:]):
      columns = files.read(split, names, labels)
      for column in columns.values():
        touch(column.values)


def text_seeds(folder):
  text = 'Ein Äffchen\n\nzwei\nZeilen\n'.encode()
  return [{'train.txt': text}, {'train.txt.gz': gzip.compress(text)}]


def text_bombs(folder):
  return [{'train.txt.gz': gzip.compress(bytes(2**26) if x else b'a' * 2**26)}
          for x in (0, 1)] + [{'train.txt': b'\0' * 100}]


def table_rows():
  return [dict(a=i, b=i / 2, text=f'text {i}', label=i % 3)
          for i in range(ROWS)]


def jsonl_seeds(folder):
  lines = '\n'.join(map(json.dumps, table_rows())).encode()
  array = json.dumps(table_rows()).encode()
  return [{'train.jsonl': lines}, {'train.json': array},
          {'train.jsonl.gz': gzip.compress(lines)}]


def jsonl_bombs(folder):
  row = json.dumps(table_rows()[0]).encode()
  return [
      {'train.jsonl': b'{"a":' * 10**6},
      {'train.json': b'[' * 10**6},
      {'train.json': b'[{"a": "' + b'x' * 2**23},
      {'train.jsonl.gz': gzip.compress(b'{"a": "' + b'x' * 2**26 + b'"}')},
      {'train.jsonl': b'{"a": ' + b'9' * 10**5 + b'}'},
      {'train.jsonl': row + b'\n{"a": 1e999}'}]


def csv_seeds(folder):
  lines = ['a,b,text,label', *(f'{x["a"]},{x["b"]},"{x["text"]}",c{x["label"]}'
                               for x in table_rows())]
  content = '\n'.join(lines).encode()
  return [{'train.csv': content},
          {'train.tsv': content.replace(b',', b'\t')},
          {'train.csv.gz': gzip.compress(content)}]


def csv_bombs(folder):
  return [{'train.csv.gz': gzip.compress(b'a,b\n' + b'1,2\n' * 10**4)},
          {'train.csv': b'a,b\n"' + b'x\n' * 10**5},
          {'train.csv': b',' * 10**5},
          {'train.csv.gz': gzip.compress(b'a,b\n' + b'x' * 2**26)}]


def arrow_table():
  rows = table_rows()
  columns = {name: [row[name] for row in rows] for name in rows[0]}
  columns['vector'] = [[1.0, 2.0]] * ROWS
  return pa.table(columns)


def parquet_file(table, **options):
  file = io.BytesIO()
  parquet.write_table(table, file, **options)
  return file.getvalue()


def arrow_file(table, make, **options):
  file = io.BytesIO()
  with make(file, table.schema, **options) as writer:
    writer.write_table(table)
  return file.getvalue()


def parquet_seeds(folder):
  table = arrow_table()
  return [{'train.parquet': parquet_file(table)},
          {'train.parquet': parquet_file(
              table, data_page_version='2.0', compression='zstd',
              use_dictionary=False, row_group_size=7)},
          {'train.arrow': arrow_file(table, pa.ipc.new_file)},
          {'train.arrow': arrow_file(table, pa.ipc.new_stream)}]


def parquet_bombs(folder):
  zeros = pa.array(np.zeros(2**24, np.int64))
  long = pa.array(['x' * 2**20])
  repeated = pa.DictionaryArray.from_arrays(np.zeros(200, np.int32), long)
  lists = pa.ListArray.from_arrays([0, 2**24], zeros)
  return [
      {'train.parquet': parquet_file(table, store_schema=False, **options)}
      for table, options in (
          (pa.table(dict(a=zeros)), dict(row_group_size=2**24)),
          (pa.table(dict(a=repeated)), dict(compression='zstd')),
          (pa.table(dict(a=lists)), {}),
          (pa.table(dict(a=['x' * 2**27])),
           dict(compression='zstd', use_dictionary=False)))]


# What haikd writes itself


def read_records(folder):
  records = records_lib.Records(str(folder))
  numbers = list(range(4))
  digests = [bytes([i]) * 16 for i in numbers]
  for digest in digests:
    records.find(digest)
  list(records._shards.read(numbers, digests))
  folder_lib.read_recipe(folder)
  folder_lib.missing(folder, 1)


def records_seeds(folder):
  folder = folder / 'records'
  recipe = recipe_lib.Recipe(
      options=dict(kind='top_k', k=2, bits=8, temperature=1.0), teacher='t',
      vocabulary='', classes=5, axes=1, width=None, shard_rows=4)
  folder_lib.begin(folder, recipe)
  folder_lib.write_shard(
      folder, 0, [(bytes([i]) * 16, b'content') for i in range(4)], 4)
  folder_lib.complete(folder, recipe, 1, {}, None)
  return [{path.name: path.read_bytes() for path in folder.iterdir()}]


def read_checkpoint(folder):
  checkpoint.metadata(folder, field='--workdir')
  checkpoint.steps_taken(folder)


def checkpoint_seeds(folder):
  folder = folder / 'run'
  one = jnp.ones((2, 2))
  state = base.TrainState(
      step=jnp.int32(3), params=base.Params({'net': {'w': one}}, {}),
      net_state={}, opt_state=(), loss_scale=jnp.float32(1), ema=None)
  with checkpointer_lib.Checkpointer(folder, keep=1) as checkpointer:
    checkpointer.save(3, state, {'next_index': 3}, dict(vocabulary=''))
  return [{str(path.relative_to(folder)): path.read_bytes()
           for path in folder.rglob('*') if path.is_file()}]


READERS = {
    'safetensors': Reader(read_safetensors, safetensors_seeds,
                          safetensors_bombs),
    # 2**22 entries of 32 bytes.
    'gguf': Reader(read_gguf, gguf_seeds, gguf_bombs, limit=2**27),
    'tokenizer': Reader(read_tokenizer, tokenizer_seeds, tokenizer_bombs),
    'config': Reader(read_model, model_seeds, model_bombs,
                     lambda name: name == 'config.json'),
    'idx': Reader(read_idx, idx_seeds, idx_bombs),
    'npy': Reader(read_npy, npy_seeds, npy_bombs),
    'txt': Reader(read_lines, text_seeds, text_bombs),
    'jsonl': Reader(read_table, jsonl_seeds, jsonl_bombs),
    'csv': Reader(read_table, csv_seeds, csv_bombs),
    'parquet': Reader(read_table, parquet_seeds, parquet_bombs),
    'records': Reader(read_records, records_seeds),
    'checkpoint': Reader(read_checkpoint, checkpoint_seeds),
}
