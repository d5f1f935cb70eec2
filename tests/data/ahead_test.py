"""Whether workers or threads make batches, and how many ahead."""

import logging
import os
import pickle
import sys
import textwrap
import types

import grain
import jax
import numpy as np
from PIL import Image
import pyarrow
from pyarrow import parquet
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import cores
from haikd.core import memory
from haikd.data import pipeline
from haikd.data import wire
from haikd.data import workers as workers_lib
from haikd.data.image import augment
from haikd.data.image import image_folder
from haikd.data.image import window

AUGMENTED = """
    from haikd import config as config_lib
    from haikd import data

    @data.register_augmentation(raw=True, replace=True)
    def invert(examples, rng):
      return {{**examples, 'image': 255 - examples['image']}}

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.teacher.train.steps = 2, 4, 2
      config.data.name = 'image_folder'
      config.data.source_dir = {photos!r}
      config.data.image_size = 8
      config.data.augment = dict(invert={{}})
      config.teacher.train.augment = {{}}
      config.evaluation.split = config.evaluation.final = 'train'
      config.teacher.options = config.student.options = dict(hidden=(4,))
      config.report.write = False
      return config
"""


@pytest.fixture(name='machine')
def _machine(monkeypatch):
  """Sets the cores and the memory that there are."""

  def set_to(count, gib=1000):
    monkeypatch.setattr(cores, 'of_process', lambda: count)
    monkeypatch.setattr(memory, 'of_host', lambda: gib * 2**30)

  return set_to


@pytest.fixture(name='read')
def _read(monkeypatch):
  """Collects (threads, batches ahead) of streams."""
  found, options = [], grain.ReadOptions

  def keep(**given):
    found.append(tuple(given.values()))
    return options(**given)

  monkeypatch.setattr(grain, 'ReadOptions', keep)
  return found


def build(photos, workers=None, **fields):
  config = config_lib.base()
  config.batch_size, config.evaluation.batch_size = 4, 5
  config.evaluation.split = config.evaluation.final = 'train'
  config.data.update(dict(
      name='image_folder', source_dir=str(photos), image_size=8, options={}))
  config.data.workers = workers
  config.update(fields)
  config_lib.validate(config)
  return pipeline.build_data(config, process_index=0, process_count=1)


def taken(stream, count=4):
  return [batch for batch, _ in zip(stream, range(count))]


def assert_same(batches, expected):
  jax.tree.map(np.testing.assert_array_equal, batches, expected)


# A batch of 5 images takes 3840 bytes; with 2 ** -16 of a GiB, a quarter is
# 4096 bytes, which is that of one batch; 2 workers make, or hold, 5 of them.
@pytest.mark.parametrize('count, gib, expected', [
    (3, 1000, 0), (4, 1000, 2), (200, 1000, 8), (200, 2**-16, 0),
    (200, 5 * 2**-16, 2)])
def test_workers_follow_from_cores_and_memory(
    photos, machine, count, gib, expected):
  machine(count, gib)
  data = build(photos)
  reader = data.splits.reader('train', 'config.data.train')
  assert data._ahead._count(reader) == expected
  assert build(photos, 3)._ahead._count(reader) == 3


def test_an_example_counts_where_images_keep_their_size(machine, tmp_path):
  (tmp_path / 'ant').mkdir()
  for i in range(6):
    Image.new('RGB', (8, 8)).save(tmp_path / 'ant' / f'{i}.png')
  machine(200, 5.1 * 2**-16)  # A label, in float32, comes to each image.
  data = build(tmp_path, data=dict(image_size=None))
  reader = data.splits.reader('train', 'config.data.train')
  assert data._ahead._count(reader) == 2


@pytest.mark.parametrize('prefetch, expected', [
    (None, (2, 4)), (1, (1, 1)), (2, (2, 2)), (9, (2, 9))])
def test_batches_ahead_are_those_of_the_config(photos, read, prefetch,
                                               expected):
  data = build(photos, 2, data=dict(prefetch=prefetch))
  data.train()
  assert data._ahead._workers.count == expected[0]
  build(photos, 0, data=dict(prefetch=prefetch)).train()
  assert read == [expected, (min(4, prefetch or 4), prefetch or 4)]


def test_a_size_without_room_for_batches_ahead_is_refused(photos, machine):
  machine(4, 20 * 2**-20)  # 20 KiB; 4 images in float32 are 3 KiB.
  build(photos, 0)
  build(photos, 2)
  with pytest.raises(checks.ConfigError, match='images of 65 batches take'):
    build(photos, 32)


def test_evaluations_share_workers_and_what_they_were_sent(
    photos, monkeypatch):
  sent, pickled = [], wire.importable
  monkeypatch.setattr(wire, 'importable', lambda *args: (
      sent.append(args) or pickled(*args)))
  data, pids = build(photos, 2), set()
  for _ in range(3):
    assert len(taken(data.evaluation('train'))) == 3
    pids |= {x.process.pid for x in workers_lib.shared(2)._all}
  assert len(sent) == 1 and len(pids) == 2


@pytest.mark.parametrize('module, reason', [
    ('__main__', '.*Views is of the script that runs'),
    ('config_file', '.*Views is of the config file')])
def test_what_only_a_script_has_is_for_threads(
    photos, machine, monkeypatch, caplog, module, reason):
  machine(4)
  expected = taken(build(photos, 0).train())
  data, asked = build(photos), build(photos, 1)
  monkeypatch.setattr(type(data.views), '__module__', module)
  with caplog.at_level(logging.INFO):
    data.check()
    assert_same(taken(data.train()), expected)
    list(data.evaluation('train'))
  said = [x for x in caplog.messages if 'config.data.workers' in x]
  assert len(said) == 1 and 'Threads decode images rather than' in said[0]
  with pytest.raises(checks.ConfigError, match=(
      'config.data.workers must be 0 for data whose batches no other process '
      f'can make; got 1, and {reason}. Set it to 0, or move your code')):
    asked.check()


def test_what_a_worker_cannot_open_is_for_threads(photos, machine, caplog,
                                                  fresh, monkeypatch):
  machine(4)

  def same(examples, rng):
    del rng
    return examples

  # A module that is in no file, as that of a notebook's cell may be.
  module = types.ModuleType('of_no_file')
  same.__module__, same.__qualname__, module.same = 'of_no_file', 'same', same
  monkeypatch.setitem(sys.modules, 'of_no_file', module)
  augment.register_augmentation(raw=True)(same)
  fields = dict(data=dict(augment=dict(same={})))
  with caplog.at_level(logging.INFO):
    build(photos, **fields).check()
  assert ('since a worker cannot open them: ModuleNotFoundError: No module '
          "named 'of_no_file' (config.data.workers)") in caplog.text
  with pytest.raises(checks.ConfigError, match='a worker cannot open them'):
    build(photos, 1, **fields).check()


def test_large_tables_are_for_threads(tmp_path, machine, monkeypatch, caplog):
  machine(4)
  monkeypatch.setattr(workers_lib, '_LARGEST', 2**16)
  rng = np.random.default_rng(0)
  images = []
  for _ in range(40):
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(
        tmp_path / 'one.png')
    images.append((tmp_path / 'one.png').read_bytes())
  parquet.write_table(pyarrow.table(dict(
      image=images, label=[i % 2 for i in range(40)])),
                      tmp_path / 'train.parquet')
  fields = dict(data=dict(name='table'))
  with caplog.at_level(logging.INFO):
    taken(build(tmp_path, **fields).train())
  assert 'each would keep a copy of more than 0 MiB of the' in caplog.text
  with pytest.raises(checks.ConfigError, match='got 1, and each would keep a'):
    build(tmp_path, 1, **fields).train()


def test_paths_of_a_million_images_are_no_large_table():
  rng = np.random.default_rng(0)
  images = [f'/data/imagenet/train/n{number % 20:08}/n{number % 20:08}_{name}'
            for number, name in enumerate(rng.integers(0, 2**16, 20000))]
  source = image_folder.ImageFolder(
      images, np.zeros(20000, np.uint8), ('ant',), 3)
  content = wire.importable(source)
  assert len(content) * 2**20 / 20000 < workers_lib._LARGEST / 2
  again = pickle.loads(content)
  assert again._images == images and len(again) == 20000


def test_an_array_is_not_copied_to_find_that_it_is_too_large(tmp_path):
  # A hole of a TiB, which no copy has room for.
  large = np.memmap(tmp_path / 'large', np.uint8, 'w+', shape=(2**40,))
  with pytest.raises(wire.TooLargeError):
    wire.importable(dict(image=large), 2**26)


@pytest.mark.parametrize('size, expected', [(8, True), (None, False)])
def test_a_faster_resizer_is_named_where_images_are_resized(
    photos, tmp_path, caplog, monkeypatch, size, expected):
  monkeypatch.setattr(window, 'is_fast', lambda: False)
  data = build(photos, 0, data=dict(image_size=size))
  reader = data.splits.reader('train', 'config.data.train')
  with caplog.at_level(logging.INFO):
    data._ahead.made(None, None, reader)
  assert ('haikd[images]' in caplog.text) == expected


def test_a_mixture_has_workers_if_a_number_is_set(photos, machine, read):
  machine(4)
  fields = dict(data=dict(mixture=dict(
      image_folder=dict(source_dir=str(photos), weight=1.0))))
  made = taken(build(photos, 1, **fields).train())
  assert_same(made, taken(build(photos, **fields).train()))
  assert read == [(1, 4), (4, 4)]


def test_augmentations_of_a_config_file(run, tmp_path, photos, machine):
  machine(4)
  (tmp_path / 'inverted.py').write_text(textwrap.dedent(
      AUGMENTED.format(photos=str(photos))))
  code, _, err = run('--config.data.workers=1', config='inverted.py')
  assert code == 2 and err.splitlines()[-1].startswith(
      'haikd: config.data.workers must be 0 for data whose batches no other '
      'process can make; got 1, and invert is of the config file. Set it to 0')
  assert not os.path.exists(tmp_path / 'run' / 'teacher')
  code, _, err = run(config='inverted.py', workdir='other')
  assert code == 0, err
  assert err.count('since invert is of the config file') == 1


def test_workers_do_not_skip(run):
  code, _, err = run('--config.data.workers=2', '--config.data.on_error=skip')
  assert code == 2 and (
      "config.data.workers must be None or 0 where config.data.on_error is "
      "'skip', since one process counts what is left out; got 2. Set it to 0, "
      "or config.data.on_error to 'stop'.") in err
