"""How the scripts that fetch data convert files, on small handmade ones."""

import importlib.util
import pathlib
import struct
import sys
import zlib

import pytest

import haikd
from haikd import config as config_lib
from haikd.config import file as config_file
from haikd.core import checks

FOLDER = pathlib.Path(haikd.__file__).parent.parent / 'configs' / 'data'


@pytest.fixture
def script(monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(FOLDER), *sys.path])

  def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

  yield load
  sys.modules.pop('packages', None)


def serialised(lines):
  """Returns a vector of strings as R's `serialize` writes it in version 3."""
  out = b'X\n' + struct.pack('>iii', 3, 0x40201, 0x30500)
  out += struct.pack('>i', 5) + b'UTF-8' + struct.pack('>ii', 16, len(lines))
  for line in lines:
    data = line.encode()
    out += struct.pack('>ii', 0x40009, len(data)) + data
  return struct.pack('>i', len(out)) + zlib.compress(out)


def test_novels_are_read_from_a_database_of_r(script):
  first, second = ['EMMA', '', 'Ça'], ['PERSUASION', 'x']
  data = serialised(first) + serialised(second)
  novels = list(script('austen').novels(data))
  assert novels == [('EMMA', first), ('PERSUASION', second)]


def test_chapters_begin_after_the_title_page_and_keep_paragraphs(script):
  lines = ['EMMA', '', 'by X', 'CHAPTER I', '', 'One', '  two.', '', '',
           'Three', 'Chapter 2', 'Four', '']
  chapters = list(script('austen').chapters(lines))
  assert chapters == ['One two.\n\nThree', 'Four']


def test_the_tenth_and_twentieth_of_twenty_chapters_are_held_out(script):
  rows = script('austen').split_up([str(i) for i in range(1, 42)])
  assert rows['validation'] == ['10', '30'] and rows['test'] == ['20', '40']
  assert len(rows['train']) == 37


def test_database_in_another_format_is_refused(script):
  data = serialised([])
  wrong = struct.pack('>i', 4) + zlib.compress(b'A\n' + data)
  with pytest.raises(ValueError, match='must be in XDR form; got '
                     "b'A.n'. Use janeaustenr"):
    list(script('austen').novels(wrong))


def test_pairs_are_those_above_the_diagonal(script, tmp_path):
  (tmp_path / 'lee.cor').write_bytes('a\n£b\nc\n'.encode('latin-1'))
  (tmp_path / 'similarities0-1.txt').write_text(
      '1 0.2 0.4\n0 1 0.6\n0 0 1\n')
  pairs = script('sentences').pairs(tmp_path)
  assert pairs == [
      dict(sentence1='a', sentence2='£b', score=0.2),
      dict(sentence1='a', sentence2='c', score=0.4),
      dict(sentence1='£b', sentence2='c', score=0.6),
  ]


def test_each_gloss_is_read_once_without_the_license(script, monkeypatch):
  module = script('sentences')
  data = ['  1 This | software\n0001 03 n 01 a 0 000 | first gloss; "so"  \n',
          '0002 03 v 01 a 0 000 | second   gloss  \n',
          '0003 03 a 01 a 0 000 | first gloss; "so"\n', '']
  monkeypatch.setattr(module.packages, 'from_debian',
                      lambda *unused: [part.encode() for part in data])
  texts = module.texts()
  assert sorted('. '.join(texts).split('. ')) == ['first gloss; "so"',
                                                  'second gloss']


@pytest.mark.parametrize('name, script, path', [
    ('sentences_minilm3_from_minilm6', 'sentences', 'data/minilm/config.json'),
    ('austen_llama_from_smollm2', 'austen',
     'data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'),
])
def test_config_names_the_script_for_its_teacher(monkeypatch, tmp_path, name,
                                                 script, path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))  # Loading appends to it.
  config = f'{FOLDER.parent / name}.py'
  with pytest.raises(checks.ConfigError,
                     match=f'Run `python configs/data/{script}.py` first'):
    config_file.load(config)
  (tmp_path / path).parent.mkdir(parents=True)
  (tmp_path / path).touch()
  config_lib.validate(config_file.load(f'{config}:smoke'))
