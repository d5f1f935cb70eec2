"""Faults of files one by one: what the message says, and that it comes."""

import json
import os
import pathlib
import sys
import threading
import time

import numpy as np
import pytest

from haikd.core import checks
from haikd.data import idx
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data.records import file_names
from haikd.data.records import rows
from haikd.data.tables import table_files
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import tokenizer_calls
from haikd.interop import gguf
from haikd.interop import pretrained_source
from haikd.interop import tensors
from haikd.storage import archive
from haikd.storage import files
from haikd.storage import gguf_header
from haikd.storage import regular

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import readers  # noqa: E402

SMALL = reading_lib.Reading(memory_mib=1)


def parsed(path):
  return path, file_names.parse(path)


OPENERS = {
    'model.safetensors': lambda path: tensors.Safetensors(path.parent),
    'x.gguf': gguf.Gguf,
    'config.json': files.read_json,
    'images': lambda path: idx.read(path, rank=3),
    'x.npz': lambda path: archive.opened(path, 'it must', 'Fix').__enter__(),
    'x.jsonl': lambda path: list(rows.read(*parsed(path))),
    'x.csv': lambda path: list(rows.read(*parsed(path))),
    'x.parquet': lambda path: list(rows.read(*parsed(path))),
    'x.arrow': lambda path: list(rows.read(*parsed(path))),
}


@pytest.mark.parametrize('name', OPENERS)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
  os.mkfifo(tmp_path / name)
  with pytest.raises(checks.DataError, match='must be a file; got a pipe'):
    OPENERS[name](tmp_path / name)


def test_a_device_is_refused():
  with pytest.raises(checks.DataError, match='got a device'):
    regular.check('/dev/zero')


def test_a_header_of_gguf_is_what_its_package_reads(tmp_path):
  import gguf as package
  content, = readers.gguf_seeds(tmp_path)[0].values()
  path = tmp_path / 'x.gguf'
  path.write_bytes(content)
  header, reader = gguf_header.read(path), package.GGUFReader(path)
  fields = {name: field.contents() for name, field in reader.fields.items()
            if not name.startswith('GGUF.')}
  assert header.metadata == fields
  assert header.tensors == {
      x.name: (tuple(reversed(x.shape.tolist())), x.tensor_type, x.data_offset)
      for x in reader.tensors}


def test_an_array_of_a_terabyte_in_60_bytes_is_refused_at_once(tmp_path):
  path = tmp_path / 'x.gguf'
  path.write_bytes(readers.gguf_bombs(tmp_path)[0]['model.gguf'])
  start = time.process_time()
  with pytest.raises(checks.DataError, match='1099511627776 entries of k, for '
                     'which the 16 bytes that are left have no room'):
    gguf.Gguf(path)
  assert time.process_time() - start < 1


@pytest.mark.parametrize('name', ['x' * 300, 'hf/' + 'y' * 300])
def test_a_long_name_of_a_folder_is_refused(name):
  with pytest.raises(checks.DataError, match='init must name a folder'):
    pretrained_source.describe(f'hf:{name}')


BYTES = np.zeros(2**21, np.uint8)
IDX = readers.idx_file((2, 1024, 1024), BYTES.tobytes())
# Numbers take 8 bytes, and names of classes 64 beside their characters.
LARGE = {
    'x.parquet': readers.parquet_file(readers.pa.table(dict(
        a=readers.pa.array(np.zeros(2**18, np.int64))))),
    'x.csv': b'a\n' + b'name\n' * 2**14,
    'x.jsonl': (json.dumps(dict(a=[1] * 2**12)).encode() + b'\n') * 2**6,
}


@pytest.mark.parametrize('name', LARGE)
def test_a_table_larger_than_the_limit_is_refused(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(LARGE[name])
  labels = ('a',) if name == 'x.csv' else ()
  read = lambda mib: table_files.TableFiles(
      str(path), 3, SMALL._replace(memory_mib=mib)).read('train', ['a'], labels)
  with pytest.raises(checks.DataError, match='must take at most 1 MiB in memor'
                     'y; got . MiB. Set config.data.memory_mib'):
    read(1)
  assert len(read(8)['a'].values) in (2**18, 2**14, 2**6)


@pytest.mark.parametrize('name, content', [
    ('x.gz', readers.gzip.compress(IDX)), ('x', IDX)])
def test_an_idx_file_larger_than_the_limit_is_refused(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(checks.DataError, match='at most 1 MiB'):
    idx.read(tmp_path / name, rank=3, reading=SMALL)
  larger = SMALL._replace(memory_mib=2)
  assert idx.read(tmp_path / name, rank=3, reading=larger).size == 2**21


def test_an_archive_larger_than_the_limit_is_refused(tmp_path):
  np.savez_compressed(tmp_path / 'train.npz', x=BYTES, label=BYTES)
  open_split = lambda mib: source.open_source(
      'npz', 'train', source_dir=str(tmp_path),
      reading=SMALL._replace(memory_mib=mib))
  with pytest.raises(checks.DataError, match='at most 1 MiB in memory; got 4'):
    open_split(1)
  assert len(open_split(4)) == 2**21


@pytest.mark.parametrize('leave', [SystemExit(7), RuntimeError('no'),
                                   KeyError('x')])
def test_what_a_data_set_raises_is_one_line(monkeypatch, leave):
  def data(split):
    raise leave

  monkeypatch.setitem(source.registry.datasets._entries, 'leaves',
                      source.registry.datasets['synthetic']._replace(
                          function=data))
  with pytest.raises(checks.DataError, match='must open split .train.; got'):
    source.open_source('leaves', 'train')


def tokenizer_of(regex):
  definition = json.loads(readers.tokenizer_seeds(None)[0]['tokenizer.json'])
  split = definition['pre_tokenizer']['pretokenizers'][0]
  split['pattern'] = dict(Regex=regex)
  return tokenizer_lib.Tokenizer(definition, source='tokenizer.json')


def test_a_panic_of_the_tokenizer_is_one_line():
  loaded = tokenizer_of('(a+)+$')
  with pytest.raises(checks.DataError, match='tokenise any text; got PanicExc'):
    loaded.encode_batch(['a' * 40 + 'b'])


def test_a_text_that_takes_too_long_is_refused_in_time(monkeypatch):
  monkeypatch.setattr(tokenizer_calls, '_SECONDS', 0.05)
  monkeypatch.setattr(tokenizer_calls, '_CHARACTERS_PER_SECOND', 1e9)
  released = threading.Event()
  with pytest.raises(checks.DataError, match='40000 characters of text in 0 se'
                     'conds; got no end'):
    tokenizer_calls.limited(released.wait, 40000, 'tokenizer.json')
  released.set()


def test_a_report_of_a_panic_is_kept_from_standard_error(capfd):
  with pytest.raises(ValueError, match='boom'):
    with tokenizer_calls._without_reports():
      os.write(2, b'stack backtrace')
      raise ValueError('boom')
  with tokenizer_calls._without_reports():
    os.write(2, b'a warning')
  assert capfd.readouterr().err == 'a warning'
