"""Rows of a pruned vocabulary: tokenised once, and renumbered."""

import json
import pathlib
import textwrap

import numpy as np
import pytest

from haikd.data import source
from haikd.data.text import pruning
from haikd.data.text import shards
from haikd.data.text import tokenizer as tokenizer_lib

TEXTS = ['the cat and the mat', '', 'a theory of 1234', 'it did not rain',
         'the other cat sat there'] * 4


@pytest.fixture(name='folder')
def _folder(tmp_path, monkeypatch):
  """Files of texts that make several shards."""
  monkeypatch.setattr(shards, 'SHARD_CHARACTERS', 100)
  monkeypatch.setattr(shards, 'BATCH_CHARACTERS', 50)
  (tmp_path / 'files').mkdir()
  (tmp_path / 'files' / 'train.jsonl').write_text(''.join(
      json.dumps(dict(text=text)) + '\n' for text in TEXTS))
  return tmp_path


@pytest.fixture(name='encoded')
def _encoded(monkeypatch):
  """All texts that were tokenised."""
  texts, encode = [], tokenizer_lib.Tokenizer.encode_batch

  def encode_batch(self, some, *args, **options):
    texts.extend(text for text in some if len(text) > 1)  # Others are probes.
    return encode(self, some, *args, **options)

  monkeypatch.setattr(tokenizer_lib.Tokenizer, 'encode_batch', encode_batch)
  return texts


def open_split(folder, tokenizer, data='data', **options):
  return source.open_source(
      'text', 'train', source_dir=str(folder / 'files'),
      data_dir=str(folder / data),
      options=dict(tokenizer=tokenizer, length=8, prune=True, **options))


def prepared(folder, data='data'):
  """Returns the folders of rows: with all ids, and pruned."""
  kept, = (folder / data).rglob('kept_ids.npy')
  pruned, = (x for x in kept.parent.parent.iterdir() if x != kept.parent)
  return kept.parent, pruned


def contents(opened):
  rows = [opened[i] for i in range(len(opened))]
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


@pytest.mark.parametrize('options', [
    {}, dict(form='padded', padding='left'), dict(pad='<s>')])
def test_rows_are_those_of_the_pruned_tokenizer(folder, bpe, encoded, options):
  once = open_split(folder, bpe, **options)
  texts = [text for text in TEXTS if text]
  assert encoded == texts
  # Without the rows of all ids, the texts are tokenised again.
  full, pruned = prepared(folder)
  other = folder / 'other' / full.relative_to(folder / 'data')
  other.mkdir(parents=True)
  (other / 'kept_ids.npy').write_bytes((full / 'kept_ids.npy').read_bytes())
  again = open_split(folder, bpe, 'other', **options)
  assert encoded == 2 * texts
  assert len(once.info['files']) > 2 and once.info == again.info
  expected = contents(again)
  for key, value in contents(once).items():
    np.testing.assert_array_equal(value, expected[key])
  written = prepared(folder, 'other')[1]
  assert sorted(x.name for x in pruned.iterdir()) == sorted(
      x.name for x in written.iterdir())
  for path in pruned.glob('*.json'):
    assert json.loads(path.read_text()) == json.loads(
        (written / path.name).read_text())


def test_rows_are_renumbered_shard_by_shard(folder, bpe, encoded):
  expected = contents(open_split(folder, bpe))
  _, pruned = prepared(folder)
  first = (pruned / '00000.array_record').stat().st_mtime_ns
  for name in ('info.json', '00001.json', '00001.array_record'):
    (pruned / name).unlink()  # It was killed in the second shard.
  del encoded[:]
  for key, value in contents(open_split(folder, bpe)).items():
    np.testing.assert_array_equal(value, expected[key])
  assert (pruned / '00000.array_record').stat().st_mtime_ns == first
  assert not encoded


def test_a_tokenizer_is_pruned_once(folder, bpe, monkeypatch):
  calls, prune = [], pruning.prune
  monkeypatch.setattr(pruning, 'prune',
                      lambda *args: calls.append(args) or prune(*args))
  first = open_split(folder, bpe)
  assert len(calls) == 1
  again = open_split(folder, bpe)  # To the ids in a file.
  assert len(calls) == 2
  assert first.text.tokenizer == again.text.tokenizer
  np.testing.assert_array_equal(first.text.kept_ids, again.text.kept_ids)


def test_pruned_texts_by_the_command_line(run, folder, bpe, tmp_path):
  (tmp_path / 'texts.py').write_text(textwrap.dedent(f'''
      from haikd import config as config_lib

      def get_config():
        config = config_lib.base()
        config.steps, config.batch_size = 2, 2
        config.data.name = 'text'
        config.data.options = dict(tokenizer={bpe!r}, length=8, prune=True)
        config.data.source_dir = {str(folder / 'files')!r}
        config.data.data_dir = {str(folder / 'data')!r}
        config.evaluation.split = config.evaluation.final = 'train[-2:]'
        config.teacher.train.steps = 1
        for network in (config.teacher, config.student):
          network.model = 'gpt2'
          network.options = dict(depth=1, width=8, heads=1, positions=8)
        config.report.write = False
        return config
  '''))
  code, out, err = run(config='texts.py')
  assert code == 0, err
  assert 'student' in out
  full, pruned = prepared(folder)
  sizes = [pathlib.Path(x / 'info.json').read_text() for x in (full, pruned)]
  assert sizes[0] == sizes[1]
