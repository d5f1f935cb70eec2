"""Formats of texts: all give the same records, or are refused by place."""

import csv
import gzip
import io
import json
import pathlib
import re

import pyarrow
from pyarrow import parquet
import pytest

from haikd.core import checks
from haikd.data.records import file_names
from haikd.data.records import json_records
from haikd.data.records import streams
from haikd.data.text import text_lines

# What CSV, JSON and lines are most easily broken by.
ROWS = [dict(text=text, n=str(n)) for n, text in enumerate([
    'plain', 'a, "quoted" one', '"', 'two\nlines, and "more"', 'tab\there',
    'café \U0001f600', 'line\u2028separator \x1f \x00', '', ' blank ',
    '{"text": "nested"}', '[1]', 'end\\', 'x' * 200_000, '\r\n',
])]


def lines(rows):
  return ''.join(f'{json.dumps(row)}\n' for row in rows).encode()


def separated(rows, **options):
  text = io.StringIO(newline='')
  writer = csv.DictWriter(text, [*rows[0]], **options)
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue().encode()


def table(rows, open_writer):
  made = pyarrow.Table.from_pylist(rows)
  sink = pyarrow.BufferOutputStream()
  with open_writer(sink, made.schema) as writer:
    writer.write_table(made)
  return sink.getvalue().to_pybytes()


def zstd(content):
  sink = pyarrow.BufferOutputStream()
  with pyarrow.CompressedOutputStream(sink, 'zstd') as file:
    file.write(content)
  return sink.getvalue().to_pybytes()


def read(path, content=None, **options):
  if content is not None:
    path.write_bytes(content)
  options = dict(documents='file', field='text') | options
  return list(text_lines.read(path, file_names.parse(path), **options))


CONTENTS = {
    'x.jsonl': lines(ROWS),
    'dos.jsonl': b'\xef\xbb\xbf' + lines(ROWS).replace(b'\n', b'\r\n\r\n'),
    'x.json': json.dumps(ROWS).encode(),
    'pretty.JSON': b'\xef\xbb\xbf\n ' + json.dumps(
        ROWS, indent=2, ensure_ascii=False).encode() + b'\n',
    'lines.json': lines(ROWS),  # Many hubs call JSON lines so.
    'x.csv': separated(ROWS),
    'unix.Csv': b'\xef\xbb\xbf\n' + separated(
        ROWS, lineterminator='\n', quoting=csv.QUOTE_ALL),
    'x.tsv': separated(ROWS, delimiter='\t'),
    'x.parquet': table(ROWS, parquet.ParquetWriter),
    'stream.arrow': table(ROWS, pyarrow.ipc.new_stream),  # As datasets writes.
    'file.arrow': table(ROWS, pyarrow.ipc.new_file),
    'x.jsonl.gz': gzip.compress(lines(ROWS)),
    'x.JSON.GZ': gzip.compress(json.dumps(ROWS).encode()),
    'x.csv.zst': zstd(separated(ROWS)),
    # Compressed in parts that are joined, as pigz and pzstd do.
    'parts.jsonl.gz': gzip.compress(lines(ROWS[:3])) + gzip.compress(
        lines(ROWS[3:])),
    'parts.jsonl.zst': zstd(lines(ROWS[:3])) + zstd(lines(ROWS[3:])),
}


@pytest.mark.parametrize('name', CONTENTS)
def test_every_format_gives_the_same_records(tmp_path, name):
  records = read(tmp_path / name, CONTENTS[name])
  assert [values for values, _, _ in records] == ROWS
  done = [size for _, _, size in records]
  # A blank line or a mark of 8 bytes may end a file.
  assert done == sorted(done)
  assert len(CONTENTS[name]) - 8 <= done[-1] <= len(CONTENTS[name])


@pytest.mark.parametrize('size', [1, 7])
def test_array_is_read_in_parts_of_any_size(tmp_path, monkeypatch, size):
  monkeypatch.setattr(json_records, '_READ', size)
  content = '[{"a": "é\U0001f600"} ,\n {"a": {"b": [1.5e3]}}\n]\n'.encode()
  records = read(tmp_path / 'x.json', content)
  assert [values for values, _, _ in records] == [
      dict(a='é\U0001f600'), dict(a=dict(b=[1500.0]))]
  assert records[1][1].startswith('element 2 (line 2) of ')


@pytest.mark.parametrize('content', [b'[]', b'[\n]\n', b'', b'\n'])
def test_empty_json_has_no_records(tmp_path, content):
  assert read(tmp_path / 'x.json', content) == []


def test_text_files_may_be_compressed(tmp_path):
  records = read(tmp_path / 'x.txt.gz', gzip.compress(b'a\n\nb\n'),
                 documents='line')
  assert [(values, place[:6]) for values, place, _ in records] == [
      (dict(text='a'), 'line 1'), (dict(text='b'), 'line 3')]


GOOD = b'{"text": "a"}\n'

SPOILT = {
    # JSON.
    'truncated': ('x.jsonl', GOOD + b'{"text": "cut of',
                  'line 2 of .* must be a JSON object; got Unterminated string '
                  'at character 10'),
    'trailing comma': ('x.jsonl', GOOD + b'{"text": "x",}\n', 'line 2 of'),
    'deep': ('x.jsonl', GOOD + b'{"text": ' + b'[' * 200_000,
             'line 2 of .*; got lists or objects that are nested too deeply'),
    'deep value': ('x.jsonl', GOOD + b'[' * 200_000,
                   'line 2 .* got a list'),
    'long number': ('x.jsonl', GOOD + b'{"n": ' + b'1' * 5000 + b'}',
                    'line 2 of .* must be a JSON object; got Exceeds'),
    'scalar': ('x.jsonl', GOOD + b'"a"\n', 'line 2 of .*; got str. Remove'),
    'array in lines': ('x.jsonl', b'[{"text": "a"}]', (
        'line 1 of .*; got a list. If the file is one array, give it the '
        'suffix .json')),
    'pretty array in lines': ('x.jsonl', b'[\n {"text": "a"}\n]',
                              'line 1 of .* give it the suffix .json'),
    'joined lines': ('x.jsonl', b'{"a": 1}{"a": 2}\n',
                     'line 1 of .*; got Extra data'),
    'object over lines': ('x.json', b'{\n"data": []\n}\n', (
        'line 1 of .* Apart from that, a .json file may be one array')),
    'array element': ('x.json', b'[{"a": 1},\n{"a": }]',
                      r'element 2 \(line 2\) of .* must be a JSON object; got '
                      'Expecting value at character 7'),
    'array of numbers': ('x.json', b'[1]', r'element 1 \(line 1\) .*; got int'),
    'deep element': ('x.json', b'[{"a": ' + b'[' * 200_000,
                     r'element 1 \(line 1\) of .*nested too deeply'),
    'cut array': ('x.json', b'[{"a": 1}\n', (
        "element 1 .* must be followed by a comma .*; got 'the end of the fi")),
    'no comma': ('x.json', b'[{"a": 1} {"a": 2}]',
                 "element 1 .* followed by a comma .*; got '{'"),
    'two arrays': ('x.json', b'[{"a": 1}]\n[{"a": 2}]', (
        r"must end with the array; got '\[' after it in line 2")),
    # Encodings, and files of another kind.
    'latin1 line': ('x.jsonl', GOOD + b'{"text": "caf\xe9"}',
                    "line 2 of .* must be UTF-8; got .utf-8. codec"),
    'latin1 array': ('x.json', b'[{"a": 1},\n{"a": "caf\xe9"}]',
                     'line 2 of .* must be UTF-8.*iconv -f CP1252'),
    'latin1 csv': ('x.csv', b'text\na\ncaf\xe9\n', 'line 3 .* must be UTF-8'),
    'utf16': ('x.txt', 'a'.encode('utf-16'), (
        'must hold text in UTF-8; got UTF-16, .*iconv -f UTF-16 -t UTF-8')),
    'utf16 without a mark': ('x.txt', 'Hello'.encode('utf-16-be'),
                             'must hold text in UTF-8; got UTF-16, '),
    'lfs': ('x.jsonl', b'version https://git-lfs.github.com/spec/v1\n',
            'got a pointer of Git LFS, .*git lfs pull'),
    'gzip': ('x.jsonl', gzip.compress(GOOD), 'got gzip, .* Add .gz to its'),
    'zstd': ('x.jsonl', zstd(GOOD), 'got Zstandard, .* Add .zst to its name'),
    'parquet': ('x.jsonl', CONTENTS['x.parquet'], 'got parquet, '),
    'twice': ('x.txt.gz', gzip.compress(gzip.compress(b'a')), 'got gzip, '),
    # Damage.
    'no gzip': ('x.jsonl.gz', GOOD, 'must be a complete .gz file; got Not a'),
    'cut gzip': ('x.jsonl.gz', CONTENTS['x.jsonl.gz'][:-50],
                 'must be a complete .gz file; got Compressed file ended'),
    'no zstd': ('x.jsonl.zst', GOOD, 'must be a complete .zst file; got'),
    'cut zstd': ('x.jsonl.zst', zstd(lines(ROWS))[:-5],
                 'must be a complete .zst file; got'),
    'no parquet': ('x.parquet', b'PAR', 'must be a parquet file.*Fetch it ag'),
    'cut parquet': ('x.parquet', CONTENTS['x.parquet'][:-50],
                    'must be a parquet file'),
    'no arrow': ('x.arrow', b'abcdefgh', 'must be an Arrow file'),
    'cut arrow': ('x.arrow', CONTENTS['stream.arrow'][:-500],
                  'must be an Arrow file'),
    # Tables.
    'short row': ('x.csv', b'text,n\na,1\nb\n', (
        'line 3 of .* must begin a row of 2 fields, as the first .*; got 1')),
    'bare comma': ('x.csv', b'text\nHello, you\n', 'line 2 .* got 2. Put a '),
    'open quote': ('x.csv', b'text,n\n"a,1\nb,2\n', (
        'line 2 of .* must begin a row of 2 fields; got unexpected end')),
    'quote inside': ('x.csv', b'text\n"a" b\n', 'line 2 of .*; got .,. expec'),
    'name twice': ('x.csv', b'text,text\na,b\n', 'must name each column once'),
    # A mark that opens no field would hide the first row's end and the second's
    # beginning: the field would be `said\t1\nyes`.
    'swallowed row': ('x.tsv', b'text\tn\n"said\t1\nyes"\t2\n',
                      'line 2 of .* single quotation mark would swallow rows'),
}


@pytest.mark.parametrize('case', SPOILT)
def test_what_cannot_be_used_is_named_by_its_place(tmp_path, case):
  name, content, text = SPOILT[case]
  with pytest.raises(checks.DataError, match=text):
    read(tmp_path / name, content)


def test_text_of_a_table_that_is_not_utf8_is_named_by_row(tmp_path):
  texts = pyarrow.array([b'a'] * 1500 + [b'caf\xe9'])
  made = pyarrow.table(dict(text=pyarrow.StringArray.from_buffers(
      len(texts), texts.buffers()[1], texts.buffers()[2])))
  parquet.write_table(made, tmp_path / 'x.parquet')
  with pytest.raises(checks.DataError, match='row 1500 of .* must be UTF-8'):
    read(tmp_path / 'x.parquet')


@pytest.mark.parametrize('name, content, text', [
    ('x.jsonl', b'{"a": 1}\n{"a": "%s"}', 'line 2 .*0 MiB.*into several lines'),
    ('x.json', b'[{"a": 1}, {"a": "%s"}]', 'element 2 .*several elements'),
    ('x.txt', b'a%s', "documents to 'paragraph' or 'line'"),
    ('x.csv', b'text\na\n"%s\n%s"\n', 'line 3 .* larger than field limit'),
    ('x.txt.gz', b'a%s', "documents to 'paragraph' or 'line'"),
])
def test_record_that_is_too_long_for_memory_is_refused(
    tmp_path, monkeypatch, name, content, text):
  monkeypatch.setattr(streams, 'RECORD_BYTES', 900)
  monkeypatch.setattr(json_records, '_READ', 64)
  limit = csv.field_size_limit(900)
  content = content.replace(b'%s', b'x' * (500 if name == 'x.csv' else 1000))
  try:
    with pytest.raises(checks.DataError, match=text):
      read(tmp_path / name,
           gzip.compress(content) if name.endswith('.gz') else content)
  finally:
    csv.field_size_limit(limit)


@pytest.mark.parametrize('name, expected', [
    ('train.jsonl', ('train', '.jsonl', '')),
    ('a.b.TXT.Zst', ('a.b', '.txt', '.zst')),
    ('c4-train.00000-of-01024.json.gz',
     ('c4-train.00000-of-01024', '.json', '.gz')),
    ('train.parquet.gz', None), ('README', None), ('train.gz', None),
    ('._train.jsonl', None),
])
def test_names_have_a_stem_a_format_and_a_compression(name, expected):
  assert file_names.parse(pathlib.Path(name)) == expected


def found(folder, split='train'):
  return [path.relative_to(folder).as_posix()
          for path, _ in file_names.find(folder, split)]


def touch(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()


@pytest.mark.parametrize('pattern', [
    'train-{:05d}-of-00003.parquet', 'train-{}-of-3.jsonl.gz',
    'train-{:05d}-of-00003-a09b74b3ef9c3b56.parquet',
    'train/{:05d}-of-00003.csv',
    'train/c4-train.{:05d}-of-00003.JSON.GZ',
])
@pytest.mark.parametrize('first', [0, 1])
def test_shards_are_one_split_in_order(tmp_path, pattern, first):
  names = [pattern.format(first + i) for i in range(3)]
  touch(tmp_path, *names, 'test-00000-of-00001.parquet', 'train-x.parquet')
  assert found(tmp_path) == names
  (tmp_path / names[1]).unlink()
  number = re.search('{.*}-of-0*3', pattern)[0].format(first + 1)
  with pytest.raises(checks.DataError, match=(
      f"'train' must have its 3 shards; got 2 in .*, without {number}. Fetch")):
    found(tmp_path)


def test_shards_that_begin_at_0_or_1_may_lack_either_end(tmp_path):
  touch(tmp_path, *(f'train-0000{i}-of-00003.parquet' for i in (1, 2)))
  with pytest.raises(checks.DataError,
                     match='without 00000 or 00003-of-00003. Fetch'):
    found(tmp_path)


def test_missing_split_names_those_of_shards(tmp_path):
  touch(tmp_path, 'training-00000-of-00001.parquet')
  with pytest.raises(checks.DataError, match="got neither. Did you mean 'train"
                     "ing'. Known: training. A slice, such as 'training.95"):
    found(tmp_path)


def test_folder_below_that_has_the_split_is_the_remedy(tmp_path):
  touch(tmp_path, 'data/train-00000-of-00001.parquet', 'other/test.csv')
  with pytest.raises(checks.DataError, match=(
      "got neither. Set config.data.source_dir to '.*data', which has it")):
    found(tmp_path)
  assert found(tmp_path / 'data') == ['train-00000-of-00001.parquet']


@pytest.mark.parametrize('names, text', [
    (('train-0-of-2.csv', 'train-1-of-2.csv', 'train-0-of-1.csv'),
     'must be one set of shards; got shards of 1 and of 2'),
    (('train-0-of-1.csv', 'train-0-of-1.jsonl'),
     'one set of shards or one folder; got shards such as train-0-of-1.csv, '
     'shards such as train-0-of-1.jsonl in'),
    (('train.jsonl', 'train.JSONL.gz'), 'got train.JSONL.gz, train.jsonl in'),
])
def test_split_that_is_there_twice_is_refused(tmp_path, names, text):
  touch(tmp_path, *names)
  with pytest.raises(checks.DataError, match=text):
    found(tmp_path)


def save_to_disk(folder, rows, *, files=1, **state):
  """Writes what `datasets.Dataset.save_to_disk` writes (datasets 4)."""
  folder.mkdir(parents=True)
  names = [f'data-{i:05d}-of-{files:05d}.arrow' for i in range(files)]
  for i, name in enumerate(names):
    (folder / name).write_bytes(
        table(rows[i::files], pyarrow.ipc.new_stream))
  (folder / 'state.json').write_text(json.dumps(dict(
      _data_files=[dict(filename=name) for name in names], _fingerprint='0',
      _format_columns=None, _format_kwargs={}, _format_type=None,
      _output_all_columns=False, **{'_split': None, **state})))
  (folder / 'dataset_info.json').write_text('{}')


def test_folders_of_datasets_are_read(tmp_path):
  for split in ('train', 'test'):
    save_to_disk(tmp_path / split, ROWS[:4], files=2, _split=split)
  (tmp_path / 'dataset_dict.json').write_text('{"splits": ["train", "test"]}')
  files = file_names.find(tmp_path, 'test')
  values = [values for path, name in files for values, _, _ in text_lines.read(
      path, name, documents='file', field='text')]
  assert values == ROWS[:4:2] + ROWS[1:4:2]
  files[1][0].unlink()
  with pytest.raises(checks.DataError, match=(
      'must hold all files that its state.json lists; got none of data-00001')):
    found(tmp_path, 'test')


@pytest.mark.parametrize('state, name', [(dict(_split='dev'), 'dev'),
                                         ({}, 'train')])
def test_folder_of_a_single_split_is_read(tmp_path, state, name):
  folder = tmp_path / 'saved'
  save_to_disk(folder, ROWS, **state)
  assert found(folder, name) == ['data-00000-of-00001.arrow']
  with pytest.raises(checks.DataError, match=(
      rf"'test' must be .* with the split '{name}' alone.*'{name}\[:90%\]'")):
    found(folder, 'test')


@pytest.mark.parametrize('content, text', [
    ('[]', 'must be written by `Dataset.save_to_disk`'),
    ('{"_data_files": []}', 'got none of any name'),
    ('{"_data_files": [{"filename": "x"}], "_indices_data_files": [1]}',
     'got a selection of rows beside them.*flatten_indices'),
])
def test_folder_of_datasets_that_is_incomplete_is_refused(tmp_path, content,
                                                          text):
  (tmp_path / 'state.json').write_text(content)
  (tmp_path / 'x').touch()
  with pytest.raises(checks.DataError, match=text):
    found(tmp_path)
