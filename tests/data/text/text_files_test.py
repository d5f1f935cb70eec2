"""Files of texts: their records, and files that cannot be used."""

import json
import os

import pyarrow
from pyarrow import parquet
import pytest
import tensorflow_datasets as tfds

from haikd.core import checks
from haikd.data import prepared
from haikd.data.text import text_files
from haikd.data.text import text_records

with tfds.core.registered.skip_registration():

  class Reviews(tfds.core.GeneratorBasedBuilder):
    """A data set of texts with a class."""

    VERSION = tfds.core.Version('1.0.0')
    code_path = None

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(dict(
              text=tfds.features.Text(),
              label=tfds.features.ClassLabel(num_classes=2))),
          disable_shuffling=True)

    def _split_generators(self, dl_manager):
      return dict(train=self._generate_examples(['a b', 'c é']),
                  test=self._generate_examples(['d']))

    def _generate_examples(self, texts):
      for i, text in enumerate(texts):
        yield i, dict(text=text, label=i % 2)


def open_corpus(folder, split='train', *, documents='file', source_dir=None,
                tfds=None, field='text'):
  location = text_files.Location(
      str(source_dir or folder) if tfds is None else None,
      str(folder / 'data'), tfds, documents, field)
  return text_files.open_corpus(location, split, folder / 'digests')


def texts(corpus, field='text'):
  return [text_records.text_of(record, field) for record in corpus.records()]


def write_lines(path, *rows):
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))


@pytest.mark.parametrize('documents, expected', [
    ('file', ['\na b\n c\n\n \nd']),
    ('paragraph', ['a b\n c', 'd']),
    ('line', ['a b', 'c', 'd']),
])
def test_option_says_what_a_document_of_a_text_file_is(tmp_path, documents,
                                                       expected):
  (tmp_path / 'train.txt').write_bytes(b'\xef\xbb\xbf\na b\n c\r\n\n \nd')
  corpus = open_corpus(tmp_path, documents=documents)
  assert texts(corpus) == expected
  assert [*corpus.records()][-1].done == 1


def test_option_names_the_field_of_a_text_file(tmp_path):
  (tmp_path / 'train.txt').write_text('a')
  assert texts(open_corpus(tmp_path, field='body'), 'body') == ['a']


def test_files_of_a_folder_are_read_in_order_of_name(tmp_path):
  folder = tmp_path / 'train'
  folder.mkdir()
  (folder / 'b.txt').write_text('second')
  (folder / 'a.txt').write_text('first')
  write_lines(folder / 'c.jsonl', dict(text='third'))
  (folder / 'README').write_text('no text')
  corpus = open_corpus(tmp_path)
  assert texts(corpus) == ['first', 'second', 'third']
  done = [record.done for record in corpus.records()]
  assert done == sorted(done) and done[-1] == 1


def test_json_lines_and_parquet_have_fields(tmp_path):
  rows = [dict(text='a é', n=1), dict(text='b', n=2)]
  write_lines(tmp_path / 'train.jsonl', *rows)
  parquet.write_table(pyarrow.Table.from_pylist(rows),
                      tmp_path / 'test.parquet')
  for split in ('train', 'test'):
    corpus = open_corpus(tmp_path, split)
    assert [record.values for record in corpus.records()] == rows
    assert [record.done for record in corpus.records()][-1] == 1


@pytest.mark.parametrize('column_groups, expected', [
    ((('text',),), ['text']),
    ((('body',), ('n', 'text')), ['text', 'n']),  # The first complete group.
    ((('body',),), ['text', 'n', 'more']),  # The message lists them.
    ((), ['text', 'n', 'more']),
])
def test_only_the_columns_that_are_used_are_read(tmp_path, column_groups,
                                                 expected):
  row = dict(text='a', n=1, more=['b'])
  parquet.write_table(pyarrow.Table.from_pylist([row]),
                      tmp_path / 'train.parquet')
  location = text_files.Location(
      str(tmp_path), None, None, 'file', 'text', column_groups)
  record, = text_files.open_corpus(
      location, 'train', tmp_path / 'digests').records()
  assert record.values == {key: row[key] for key in expected}


def test_tfds_data_set_is_read(tmp_path):
  folder = str(tmp_path / 'data')
  prepared.prepare(lambda: Reviews(data_dir=folder, file_format='array_record'))
  corpus = open_corpus(tmp_path, tfds='reviews')
  assert texts(corpus) == ['a b', 'c é']
  assert [r.values['label'] for r in corpus.records()] == [0, 1]
  assert corpus.digest != open_corpus(tmp_path, 'test', tfds='reviews').digest
  with pytest.raises(checks.DataError, match="got 'trian'. Did you mean"):
    open_corpus(tmp_path, 'trian', tfds='reviews')


def test_unprepared_tfds_data_set_is_refused_with_the_command(tmp_path):
  with pytest.raises(checks.DataError, match='download_and_prepare'):
    open_corpus(tmp_path, tfds='imdb_reviews')


def test_digest_depends_on_content_and_options_of_reading(tmp_path):
  path = tmp_path / 'train.txt'
  path.write_text('a')
  digest = open_corpus(tmp_path).digest
  assert open_corpus(tmp_path, documents='line').digest != digest
  path.write_text('b')
  os.utime(path, ns=(1, 1))
  assert open_corpus(tmp_path).digest != digest
  path.write_text('a')
  path.rename(tmp_path / 'test.txt')
  assert open_corpus(tmp_path, 'test').digest == digest


def test_digest_of_an_unchanged_file_is_cached(tmp_path):
  path = tmp_path / 'train.txt'
  path.write_text('a')
  digest = open_corpus(tmp_path).digest
  cached, = (tmp_path / 'digests').iterdir()
  cached.write_text('another digest')
  assert open_corpus(tmp_path).digest != digest


@pytest.mark.parametrize('name, content, text', [
    ('train.txt', b'caf\xe9', 'train.txt. must be UTF-8.*iconv'),
    ('train.jsonl', b'{"txt": "a"}',
     "line 1 .* must have the field 'text'; got .'txt'.. Did you mean 'txt'"),
    ('train.jsonl', b'{"text": 3}',
     "must have a text in the field 'text'; got 3"),
    ('train.jsonl', b'{"text": null}',
     "must have a text in the field 'text'; got None"),
    ('train.jsonl', b'{"text": NaN}',
     "must have a text in the field 'text'; got nan"),
    ('train.csv', b'body\na\n', "line 2 .* must have the field 'text'; got"),
])
def test_file_that_cannot_be_used_is_refused(tmp_path, name, content, text):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(checks.DataError, match=text):
    texts(open_corpus(tmp_path))


# Half of an emoji, cut by a program that counts in UTF-16.
@pytest.mark.parametrize('name', ['train.jsonl', 'train.json'])
@pytest.mark.parametrize('value', [
    'broken \ud83d', ['a', 'b\ude00'], [dict(role='user', content='\udfff')],
    {'\ud83d': 1},
])
def test_half_a_character_is_named_by_its_line(tmp_path, name, value):
  rows = [dict(text='whole \U0001f600')] * 5 + [dict(text=value)]
  write_lines(tmp_path / name, *rows)
  records = [*open_corpus(tmp_path).records()]
  assert text_records.value_of(records[4], 'text') == rows[4]['text']
  with pytest.raises(checks.DataError, match=(
      r"line 6 of .* must have whole characters in the field 'text'; got the "
      r"lone surrogate '.ud83d|.ude00|.udfff'. Remove")):
    text_records.value_of(records[5], 'text')


def test_half_a_character_in_a_field_that_is_not_used_is_harmless(tmp_path):
  write_lines(tmp_path / 'train.jsonl', dict(text='a', more='\ud83d'))
  assert texts(open_corpus(tmp_path)) == ['a']


@pytest.mark.parametrize('value, expected', [
    ('3', 3), ('0.5', 0.5), ('a', 'a'), ('', '')])
def test_numbers_of_csv_are_numbers_where_they_are_needed(tmp_path, value,
                                                          expected):
  (tmp_path / 'train.csv').write_text(f'text,n\n1,{value}\n')
  record, = open_corpus(tmp_path).records()
  assert text_records.number_of(record, 'n') == expected
  assert text_records.text_of(record, 'text') == '1'
  write_lines(tmp_path / 'test.jsonl', dict(n=value))
  record, = open_corpus(tmp_path, 'test').records()
  assert text_records.number_of(record, 'n') == value


def test_missing_split_lists_the_known_ones(tmp_path):
  (tmp_path / 'training.txt').touch()
  with pytest.raises(checks.DataError, match=(
      "Split 'train' must be a file or folder in .*; got neither. Did you mean "
      "'training'.*A split is a file")):
    open_corpus(tmp_path)


def test_duplicate_or_empty_split_is_refused(tmp_path):
  (tmp_path / 'train.txt').touch()
  (tmp_path / 'train').mkdir()
  with pytest.raises(checks.DataError, match='or one folder; got '
                     'train.txt, train in'):
    open_corpus(tmp_path)
  (tmp_path / 'train.txt').unlink()
  with pytest.raises(checks.DataError, match="Split 'train' must have files"
                     '; got the folder .*train'):
    open_corpus(tmp_path)


def test_file_that_cannot_be_opened_is_refused(tmp_path):
  # As a cache of the Hub has it, whose blobs are gone.
  (tmp_path / 'train.txt').symlink_to(tmp_path / 'blob')
  with pytest.raises(checks.DataError, match='train.txt. must be '
                     'readable; got no file, or a link to none. Fetch it'):
    open_corpus(tmp_path)


def test_files_below_the_folder_of_a_split_are_not_left_out(tmp_path):
  (tmp_path / 'train' / 'part').mkdir(parents=True)
  (tmp_path / 'train' / 'a.txt').write_text('a')
  assert texts(open_corpus(tmp_path)) == ['a']
  (tmp_path / 'train' / 'part' / 'b.txt').write_text('b')
  with pytest.raises(checks.DataError, match="Split 'train' must have all its "
                     "files in .*; got the folder 'part' in it"):
    open_corpus(tmp_path)


@pytest.mark.parametrize('options, text', [
    (dict(documents='lines'), 'config.data.options.documents must say what .*; '
     "got 'lines'. Did you mean 'line'"),
    (dict(source_dir='s3://bucket/x'), "'s3://bucket/x' must be a local path "
     'or begin with gs://'),
])
def test_options_out_of_range_are_refused(tmp_path, options, text):
  with pytest.raises(ValueError, match=text):
    open_corpus(tmp_path, **options)


@pytest.mark.parametrize('source_dir, tfds', [(None, None), ('x', 'y')])
def test_texts_come_from_either_files_or_tfds(tmp_path, source_dir, tfds):
  location = text_files.Location(source_dir, None, tfds, 'file', 'text')
  with pytest.raises(checks.ConfigError, match='Either config.data.source_dir'):
    text_files.open_corpus(location, 'train', tmp_path)
