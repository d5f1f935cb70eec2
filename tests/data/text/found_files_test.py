"""Files as people have them: each is read as it is meant, or named.

They are those of public reports, rebuilt small. `docs/language_models.md` has
them as a table.
"""

import gzip
import importlib.util
import io
import json
import logging
import pathlib
import re
from typing import Any, NamedTuple
import zipfile

import pyarrow
from pyarrow import parquet
import pytest

from haikd.core import checks
from haikd.data import source
from haikd.data.text import tokenizer as tokenizer_lib


def load_module():
  path = pathlib.Path(__file__).parent / 'make_chat_goldens.py'
  spec = importlib.util.spec_from_file_location('make_chat_goldens', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


CASES = load_module()


def lines(*records):
  return ''.join(f'{json.dumps(record)}\n' for record in records).encode()


def table(**columns):
  sink = pyarrow.BufferOutputStream()
  parquet.write_table(pyarrow.table(columns), sink)
  return sink.getvalue().to_pybytes()


def archive():
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as writer:
    writer.writestr('train.txt', 'a')
  return file.getvalue()


A, B = dict(text='a'), dict(text='b')
AB = ['a', 'b']
CHAT = [dict(role='user', content='Hi'), dict(role='assistant', content='Yes')]
SHARED = [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Yes'}]
CHATML = ('<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>'
          '\n')


class Find(NamedTuple):
  """What a folder holds, and what comes out.

  Attributes:
    files: `{name: content}`; a path is what a link leads to.
    result: the texts that are read, or what the error matches.
    said: what is said, or ''.
    data: the data set.
    options: its options.
    source_dir: the folder of the split.
  """

  files: dict[str, Any]
  result: Any
  said: str = ''
  data: str = 'text'
  options: dict[str, Any] = {}
  source_dir: str = '.'


FINDS = {
    # JSON lines.
    'saved by Notepad': Find(
        {'train.jsonl': b'\xef\xbb\xbf' + lines(A) + b'\r\n' + lines(B)}, AB),
    'commas after lines': Find(
        {'train.jsonl': b'{"text": "a"},\n{"text": "b"},\n'},
        "line 1 of .*; got Extra data at character 14, before ',', where each "
        'line must be a whole object'),
    'a dict of Python': Find(
        {'train.jsonl': b"{'text': 'a'}\n"},
        'in double quotes at character 2, before "\'text\': \'a\'}"'),
    'written over several lines': Find(
        {'train.jsonl': b'{\n "text": "a"\n}\n'},
        'line 1 .* where each line must be a whole object'),
    'a page that says 404': Find(
        {'train.jsonl': b'<!DOCTYPE html><html>'},
        "before '<!DOCTYPE html><html>'"),
    'zeros after a crash': Find({'train.jsonl': lines(A) + b'\0' * 9},
                                r"line 2 of .* before '\\x00\\x00"),
    'records in a field': Find(
        {'train.json': b'{"data": [{"text": "a"}]}'},
        r"got \['data'\].* The records seem to be in 'data': write each of "
        'them on a line'),
    'null': Find({'train.jsonl': lines(A, dict(text=None))},
                 "line 2 .* must have a text in the field 'text'; got None"),
    # Tables.
    'from a European Excel': Find(
        {'train.csv': b'\xef\xbb\xbftext;n\r\na, b;1\r\n'}, ['a, b'],
        "columns are separated by ';', as the first line shows"),
    'Excel says sep': Find({'train.csv': b'sep=;\ntext;n\na;1\n'}, ['a'],
                           "columns are separated by ';'"),
    'CSV with tabs': Find({'train.csv': b'text\tn\na, b\t1\n'}, ['a, b'],
                          r"columns are separated by '\\t'"),
    'no header': Find({'train.csv': b'hello there,1\nmore,2\n'},
                      'The first row of the file must name its columns'),
    'a column of pandas': Find({'train.csv': b',text\n0,a\n1,b\n'}, AB),
    'from Windows': Find(
        {'train.csv': 'text\nit’s\n'.encode('cp1252')},
        'line 2 .* must be UTF-8.* `iconv -f CP1252 -t UTF-8`'),
    'large strings': Find(
        {'train.parquet': table(
            text=pyarrow.array(AB, pyarrow.large_string()))}, AB),
    'categories': Find(
        {'train.parquet': table(text=pyarrow.array(AB).dictionary_encode())},
        AB),
    'half a parquet file': Find({'train.parquet': table(text=AB)[:-20]},
                                r'not a parquet file\. Fetch it again'),
    # Text.
    'line ends of Windows': Find({'train.txt': b'a\r\nb\r\n'}, ['a\nb\n']),
    # Compression.
    'gz by name alone': Find({'train.jsonl.gz': lines(A)},
                             'if it is not compressed, take .gz off its name'),
    'half a gz': Find({'train.jsonl.gz': gzip.compress(lines(*[A] * 99))[:-9]},
                      'must be a complete .gz file; .* Fetch it again'),
    'zip': Find({'train.zip': archive()}, "'train.zip' is an archive. Unpack"),
    'ndjson': Find({'train.ndjson': lines(A)},
                   'JSON lines. Give its name the suffix .jsonl'),
    'spreadsheet': Find({'train.xlsx': archive()}, 'Save it as CSV in UTF-8'),
    # Folders.
    'from a Mac': Find({'train/a.jsonl': lines(A), 'train/._a.jsonl': b'\0\5',
                        'train/.DS_Store': b'\0',
                        '__MACOSX/train/._a.jsonl': b'\0'}, ['a']),
    'unfinished': Find({'train.jsonl.part': lines(A)},
                       "'train.jsonl.part' is a download that has not ended"),
    'unfinished, of aria2': Find(
        {'train.jsonl': lines(A), 'train.jsonl.aria2': b'\0'},
        'train.jsonl.aria2 beside it, which its download removes'),
    'twice': Find({'train.jsonl': lines(A), 'train.jsonl.gz': b''},
                  'got train.jsonl, train.jsonl.gz in .* Move all but one'),
    'two versions of a shard': Find(
        {'train-00000-of-00001.parquet': table(text=AB),
         'train-00000-of-00001-a09b74b3ef9c3b56.parquet': table(text=AB)},
        'must have each shard once; got several files 00000-of-00001 in'),
    'parts with numbers': Find(
        {'train_0.jsonl': lines(A), 'train_1.jsonl': lines(B)},
        "Move train_0.jsonl, train_1.jsonl into a folder 'train' if they are"),
    'a cache of the Hub': Find(
        {'blobs/0a': lines(A), 'refs/main': b'9f',
         'snapshots/9f/train.jsonl': pathlib.Path('../../blobs/0a')},
        "Set config.data.source_dir to '.*snapshots/9f', which has it"),
    'a snapshot of the Hub': Find(
        {'blobs/0a': lines(A),
         'snapshots/9f/train.jsonl': pathlib.Path('../../blobs/0a')}, ['a'],
        source_dir='snapshots/9f'),
    'a snapshot without its blobs': Find(
        {'train.jsonl': pathlib.Path('../../blobs/0a')},
        'got no file, or a link to none. Fetch it again'),
    # Fields.
    'Alpaca': Find({'train.jsonl': lines(dict(
        instruction='Hi', input='there', output='Yes'))},
                   "prompt='instruction' and completion='output'. Join "
                   "'instruction' and 'input'", data='completions'),
    'Alpaca without its input': Find(
        {'train.parquet': table(instruction=AB, input=['', 'x'], output=AB)},
        ['aa', 'bb'], "1 prompts go on in the field 'input', which is not read",
        data='completions',
        options=dict(prompt='instruction', completion='output')),
    'prompt and response': Find(
        {'train.jsonl': lines(dict(prompt='Hi', response=' Yes'))},
        "config.data.options.prompt='prompt' and completion='response'",
        data='completions'),
    'nothing to learn': Find(
        {'train.jsonl': lines(dict(prompt='a', completion=''))}, ['a'],
        '1 completions are empty', data='completions'),
    'ShareGPT': Find({'train.jsonl': lines(dict(conversations=SHARED))},
                     [CHATML], data='chat',
                     options=dict(messages='conversations')),
    'ShareGPT without the option': Find(
        {'train.jsonl': lines(dict(conversations=SHARED))},
        "reads messages, with config.data.options.messages='conversations'",
        data='chat'),
    'messages in a text': Find(
        {'train.parquet': table(messages=[json.dumps(CHAT)])}, [CHATML],
        data='chat'),
    'texts as messages': Find(
        {'train.jsonl': lines(dict(prompt='Hi', completion='Yes'))},
        "config.data.name='completions' reads prompts and", data='chat'),
    'a message that is not learned': Find(
        {'train.jsonl': lines(dict(messages=[*CHAT, dict(CHAT[1], weight=0)]))},
        "message 3 .* must have no weight but 1; got 0. Put messages that are "
        "not learned into the field 'prompt'", data='chat'),
}


@pytest.fixture
def folder(tmp_path):
  """Returns a function that writes a folder's files, and returns its path."""

  def write(files):
    for name, content in files.items():
      path = tmp_path / 'files' / name
      path.parent.mkdir(parents=True, exist_ok=True)
      if isinstance(content, pathlib.Path):
        path.symlink_to(content)
      else:
        path.write_bytes(content)
    return tmp_path / 'files'

  return write


def open_find(find, path, tokenizer):
  options = dict(dict(form='padded') if find.data == 'text' else {},
                 tokenizer=tokenizer, length=64, **find.options)
  return source.open_source(find.data, 'train', options=options,
                            source_dir=str(path / find.source_dir),
                            data_dir=str(path.parent / 'data'))


@pytest.mark.parametrize('name', FINDS)
def test_file_as_people_have_it(tmp_path, folder, caplog, name):
  find = FINDS[name]
  CASES.write_tokenizer('chatml', tmp_path / 'tokenizer')
  path, tokenizer = folder(find.files), str(tmp_path / 'tokenizer')
  if isinstance(find.result, str):
    with pytest.raises(checks.DataError, match=find.result):
      open_find(find, path, tokenizer)
    return
  with caplog.at_level(logging.INFO, 'haikd'):
    opened = open_find(find, path, tokenizer)
  loaded = tokenizer_lib.load(opened.text.tokenizer)
  end = '' if find.data == 'chat' else '<|im_end|>'
  texts = [loaded.decode(row['tokens'][row['mask']].tolist())
           for row in map(opened.__getitem__, range(len(opened)))]
  assert texts == [f'{text}{end}' for text in find.result]
  assert re.search(find.said, caplog.text) if find.said else not caplog.text


# The folder of a tokenizer: its files, and what the error matches.
TOKENIZERS = {
    'sentencepiece alone': (
        ['tokenizer.model'], r'only tokenizer.model. Convert it where .*'
        r'from_pretrained\(.*save_pretrained'),
    'byte-level BPE of 2019': (
        ['vocab.json', 'merges.txt'], r'only merges.txt. Convert it where .*'
        r'from_pretrained\(.*save_pretrained'),
    'weights alone': (['config.json', 'model.safetensors'],
                      'has no tokenizer.json. Fetch it from where'),
}


@pytest.mark.parametrize('name', TOKENIZERS)
def test_tokenizer_as_people_have_it(folder, name):
  files, text = TOKENIZERS[name]
  with pytest.raises(checks.DataError, match=text):
    tokenizer_lib.load(str(folder({file: b'{}' for file in files})))


def test_name_on_the_hub_is_no_folder():
  with pytest.raises(checks.DataError, match='haikd fetches nothing: run `hf '
                     'download some/model --local-dir some/model`'):
    tokenizer_lib.load('some/model')
