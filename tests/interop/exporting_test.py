"""The safetensors library reads the exported files."""

import json
import os
import pathlib

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from haikd import interop
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import checks
from haikd.core import registry
from haikd.engine import mesh as mesh_lib
from haikd.interop import storing
from haikd.processes import distributed
from haikd.storage import folders

FILE = 'model.safetensors'
GOLDEN = pathlib.Path(__file__).parent / 'golden'


def load(toy, init=None, **options):
  expected = toy.expect(**options)
  options = {**toy.options, **options}
  return interop.load('config.student.init', init or toy.init, expected,
                      options=options).params


def export(toy, folder, params, options=None, tokenizer=None):
  interop.export(folder, model='toy', options=options or toy.options,
                 params=params, card=lambda folder: '# A toy\n',
                 tokenizer=tokenizer and interop.TokenizerSource(tokenizer))


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('stacked', (False, True))
@pytest.mark.parametrize('tied', (False, True))
def test_tensors_are_those_that_were_read(toy, tmp_path, stacked, tied):
  toy.write(toy.make_tensors(tied), tied=tied)
  params = load(toy, stacked=stacked, tied=tied)
  export(toy, tmp_path / 'out', params, dict(toy.options, tied=tied))
  written = safetensors.load_file(tmp_path / 'out' / FILE)
  expected = {name: x for name, x in toy.make_tensors(tied).items()
              if not name.endswith('buffer')}
  assert set(written) == set(expected)
  for name, values in expected.items():
    np.testing.assert_array_equal(written[name], values, err_msg=name)


@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
def test_loaded_again_it_is_bitwise_the_same(toy, tmp_path, dtype):
  params = load(toy, dtype=dtype, stacked=True)
  export(toy, tmp_path / 'out', params)
  again = load(toy, f'hf:{tmp_path / "out"}', dtype=dtype, stacked=True)
  jax.tree.map(np.testing.assert_array_equal, params, again)
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['torch_dtype'] == dtype


def test_numpy_and_sharded_parameters_give_the_same_file(toy, tmp_path):
  params = load(toy, stacked=True)
  mesh = mesh_lib.build_mesh(dict(replica=2, fsdp=2, tensor=2))
  split = jax.device_put(
      params, mesh_lib.place(mesh, params, {'up/w': -1}))
  export(toy, tmp_path / 'one', params)
  export(toy, tmp_path / 'numpy', jax.tree.map(np.asarray, params))
  export(toy, tmp_path / 'split', split)
  one = contents(tmp_path / 'one')
  assert one == contents(tmp_path / 'numpy') == contents(tmp_path / 'split')


def test_config_says_the_vocabulary_and_card_is_the_readme(toy, tmp_path):
  export(toy, tmp_path / 'out', load(toy))
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config == dict(toy.options, model_type='toy', architectures=['Toy'],
                        vocab_size=12, torch_dtype='float32', pad_token_id=None)
  assert (tmp_path / 'out' / 'README.md').read_text() == '# A toy\n'


def test_vocabulary_is_that_of_the_parameters(toy, tmp_path):
  params = dict(load(toy), embed=dict(embeddings=np.ones((3, 16), np.float32)))
  export(toy, tmp_path / 'out', params)
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['vocab_size'] == 3


def test_file_is_as_pytorch_wants_it(toy, tmp_path):
  export(toy, tmp_path / 'out', load(toy))
  content = (tmp_path / 'out' / FILE).read_bytes()
  length = int.from_bytes(content[:8], 'little')
  assert length % 8 == 0
  header = json.loads(content[8:8 + length])
  assert header['__metadata__']['format'] == 'pt'


def test_shards_are_as_large_as_they_may_be(tmp_path):
  # 16, 24, 8 and 100 bytes: the first two fill a file of 40, and the last one
  # has a file to itself.
  planned = []
  for i, size in enumerate((4, 6, 2, 25)):
    values = np.full(size, i, np.float32)
    spec = jax.ShapeDtypeStruct(values.shape, values.dtype)
    planned.append(storing.PlannedTensor(
        f't{i}', spec, lambda values=values: values))
  storing.write(tmp_path, planned, limit=40)
  index = json.loads((tmp_path / f'{FILE}.index.json').read_text())
  assert index['metadata']['total_size'] == 148
  name = 'model-0000{}-of-00003.safetensors'
  assert index['weight_map'] == dict(
      t0=name.format(1), t1=name.format(1), t2=name.format(2),
      t3=name.format(3))
  written = safetensors.load_file(tmp_path / name.format(1))
  np.testing.assert_array_equal(written['t1'], np.ones(6))


def test_tensors_are_read_one_at_a_time(tmp_path):
  alive = []

  def plan(i):
    def read():
      assert not alive, 'two at once'
      values = np.zeros(4, np.float32)
      alive.append(i)
      return values.view(Released)

    spec = jax.ShapeDtypeStruct((4,), np.dtype(np.float32))
    return storing.PlannedTensor(f't{i}', spec, read)

  class Released(np.ndarray):

    def __del__(self):
      alive.clear()

  storing.write(tmp_path, [plan(i) for i in range(3)])
  assert len(safetensors.load_file(tmp_path / FILE)) == 3


def test_tokenizer_is_copied_and_its_special_tokens_told(toy, tmp_path):
  source = tmp_path / 'tokenizer'
  source.mkdir()
  added = [dict(id=5, content='</s>'), dict(id=3, content='<pad>')]
  (source / 'tokenizer.json').write_text(json.dumps(dict(added_tokens=added)))
  (source / 'tokenizer_config.json').write_text(json.dumps(
      dict(eos_token='</s>', pad_token=dict(content='<pad>'), bos_token=None)))
  (source / 'notes.txt').write_text('mine')
  export(toy, tmp_path / 'out', load(toy), tokenizer=source)
  written = contents(tmp_path / 'out')
  assert set(written) == {'config.json', 'README.md', FILE, 'tokenizer.json',
                          folders.MANIFEST,
                          'tokenizer_config.json'}
  assert written['tokenizer.json'] == (source / 'tokenizer.json').read_bytes()
  config = json.loads(written['config.json'])
  assert (config['eos_token_id'], config['pad_token_id']) == (5, 3)
  assert config['bos_token_id'] is None


def test_tokenizer_may_be_its_file(toy, tmp_path):
  path = tmp_path / 'mine.json'
  path.write_text('{}')
  export(toy, tmp_path / 'out', load(toy), tokenizer=path)
  assert (tmp_path / 'out' / 'tokenizer.json').read_text() == '{}'


@pytest.mark.parametrize('name, content', (
    ('tokenizer_config.json', '["<s>"]'), ('tokenizer.json', '3')))
def test_file_that_is_no_object_is_named(toy, tmp_path, name, content):
  source = tmp_path / 'tokenizer'
  source.mkdir()
  for each in ('tokenizer.json', 'tokenizer_config.json'):
    (source / each).write_text(content if each == name else '{}')
  with pytest.raises(checks.DataError, match=f'{name} must hold a JSON object'):
    export(toy, tmp_path / 'out', load(toy), tokenizer=source)


def test_tokenizer_that_is_none_is_refused(toy, tmp_path):
  with pytest.raises(checks.DataError, match='folder with tokenizer.json'):
    export(toy, tmp_path / 'out', load(toy), tokenizer=tmp_path / 'nowhere')


def test_earlier_export_is_replaced(toy, tmp_path):
  params = load(toy)
  export(toy, tmp_path / 'out', params)
  export(toy, tmp_path / 'out', jax.tree.map(lambda x: x + 1, params))
  assert set(contents(tmp_path / 'out')) == {
      'config.json', 'README.md', FILE, folders.MANIFEST}
  written = safetensors.load_file(tmp_path / 'out' / FILE)
  np.testing.assert_array_equal(written['norm.weight'],
                                toy.tensors['norm.weight'] + 1)
  assert {path.name for path in tmp_path.iterdir()} == {'out', 'toy'}


@pytest.mark.parametrize('name', ('notes/mine.txt', 'README.md', FILE,
                                  folders.MANIFEST))
def test_what_was_put_into_an_export_is_not_replaced(toy, tmp_path, name):
  params, mine = load(toy), tmp_path / 'out' / name
  export(toy, tmp_path / 'out', params)
  mine.parent.mkdir(exist_ok=True)
  mine.write_text('mine')
  with pytest.raises(checks.ConfigError, match='with nothing added; got .*' + (
      f'no {name}' if name == folders.MANIFEST else name)):
    export(toy, tmp_path / 'out', params)
  assert mine.read_text() == 'mine'


def test_folder_of_others_is_left_alone(toy, tmp_path):
  before = contents(toy.folder)
  with pytest.raises(
      checks.ConfigError, match='--output must be empty, missing'):
    export(toy, toy.folder, load(toy))
  assert contents(toy.folder) == before


def test_failure_leaves_what_was_there(toy, tmp_path, monkeypatch):
  params = load(toy)
  export(toy, tmp_path / 'out', params)
  before = contents(tmp_path / 'out')

  def fail(*unused):
    raise OSError('disk full')

  monkeypatch.setattr(storing, 'write', fail)
  with pytest.raises(checks.DataError, match='disk full'):
    export(toy, tmp_path / 'out', params)
  assert contents(tmp_path / 'out') == before
  assert {path.name for path in tmp_path.iterdir()} == {'out', 'toy'}


def test_bucket_is_refused(toy):
  with pytest.raises(
      checks.ConfigError, match='--output must be a local folder'):
    export(toy, 'gs://bucket/out', load(toy))


@pytest.mark.parametrize('change, match', (
    (lambda params: params.pop('norm'), 'no norm/scale'),
    (lambda params: params.update(gate=dict(w=jnp.ones(3))),
     'params must be those .* got gate/w, which transformers does not have'),
    (lambda params: params.pop('block_2/attn/key'), '2 of 3 parts of h.2.qkv'),
))
def test_other_parameters_are_refused(toy, tmp_path, change, match):
  params = load(toy)
  change(params)
  with pytest.raises(checks.DataError, match=match):
    export(toy, tmp_path / 'out', params)
  assert not (tmp_path / 'out').exists()


def export_golden(case, folder, changes=None, **more):
  """Exports ones in the shapes of a network, and returns its config."""
  pretrained = interop.describe(f'hf:{GOLDEN / case}')
  options = {**pretrained.options, **(changes or {})}
  function = registry.models[pretrained.model].function
  inputs = jnp.zeros((1, 4), jnp.int32)
  if pretrained.model == 'vit':
    size = options['image_size']
    inputs = jnp.zeros((1, size, size, options['channels']))
  net = hk.transform(lambda x: function(x, is_training=False, **options))
  shapes = jax.eval_shape(net.init, jax.random.key(0), inputs)
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  interop.export(folder, model=pretrained.model, options=options, params=params,
                 tokenizer=None, card=lambda folder: '', **more)
  return json.loads((folder / 'config.json').read_text())


@pytest.mark.parametrize('case', ('vit', 'bert_classification'))
def test_classes_are_written_by_their_names(tmp_path, case):
  names = ('crane', 'owl', 'crane')
  config = export_golden(case, tmp_path / 'out', classes=names)
  assert config['id2label'] == {'0': 'crane', '1': 'owl', '2': 'crane'}
  assert set(config['label2id']) == {'crane', 'owl'}
  assert config['label2id']['owl'] == 1
  assert interop.describe(f'hf:{tmp_path / "out"}').classes == names


@pytest.mark.parametrize('classes', (None, ('a', 'b')))
def test_classes_that_do_not_fit_are_numbers(tmp_path, classes):
  config = export_golden('vit', tmp_path / 'out', classes=classes)
  assert config['label2id'] == dict(LABEL_0=0, LABEL_1=1, LABEL_2=2)


def test_network_without_classes_gets_no_names(tmp_path):
  config = export_golden('gpt2', tmp_path / 'out', classes=('a', 'b'))
  assert 'id2label' not in config


def test_scale_is_written_for_the_preprocessor(tmp_path):
  scale = (0.5, 0.25, 0.0), (1.0, 0.5, 0.25)
  export_golden('vit', tmp_path / 'out', scale=scale)
  path = tmp_path / 'out' / 'preprocessor_config.json'
  assert json.loads(path.read_text()) == dict(
      image_processor_type='ViTImageProcessor', do_resize=True,
      size=dict(height=8, width=8), do_rescale=True, rescale_factor=1 / 255,
      do_normalize=True, image_mean=[0.5, 0.25, 0.0], image_std=[1, 0.5, 0.25])
  assert interop.describe(f'hf:{tmp_path / "out"}').scale == scale


def test_nothing_is_said_of_a_scale_that_is_not_known(tmp_path):
  export_golden('vit', tmp_path / 'out')
  assert not (tmp_path / 'out' / 'preprocessor_config.json').exists()


@pytest.mark.parametrize('case, length, expected', (
    ('llama', 8192, 8192),
    ('llama', 100, 2048),
    ('llama', None, None),
    ('gpt2', 8192, None),
    ('bert', 8192, 12),  # The size of its position embeddings.
    ('llama_yarn', 8192, 'as without'),  # Its scaling gives the length.
))
def test_length_is_written_where_no_option_says_it(
    tmp_path, case, length, expected):
  config = export_golden(case, tmp_path / 'out', length=length)
  if expected == 'as without':
    without = export_golden(case, tmp_path / 'without')
    expected = without['max_position_embeddings']
    assert expected != 8192
  assert config.get('max_position_embeddings') == expected


def test_what_a_killed_export_left_is_in_no_ones_way(toy, tmp_path):
  left = tmp_path / f'.out.{os.getpid()}'
  left.mkdir()
  (left / 'config.json').write_text('')
  export(toy, tmp_path / 'out', load(toy))
  assert (tmp_path / 'out' / FILE).exists()


def test_folder_is_as_open_as_any_other(toy, tmp_path):
  (tmp_path / 'other').mkdir()
  export(toy, tmp_path / 'out', load(toy))
  assert (tmp_path / 'out').stat().st_mode == (
      tmp_path / 'other').stat().st_mode


def test_others_hear_of_what_the_first_refuses(toy, tmp_path, monkeypatch):
  """Before they gather; later they would wait for a process that is gone."""
  def first(function):
    del function
    raise checks.ConfigError('the folder of process 0')

  def read(*unused):
    raise AssertionError('gathers')

  params = load(toy)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  monkeypatch.setattr(distributed, 'first', first)
  monkeypatch.setattr(storing.PlannedTensor, 'read', read)
  with pytest.raises(checks.ConfigError, match='the folder of process 0'):
    export(toy, tmp_path / 'out', params)


@pytest.mark.parametrize('there', ('folder', 'tokenizer'))
def test_first_decides_on_folder_and_tokenizer(toy, tmp_path, monkeypatch,
                                               there):
  heard = []

  def first(function):
    try:
      return function()
    except (checks.ConfigError, checks.DataError) as err:
      heard.append(err)
      raise

  monkeypatch.setattr(distributed, 'first', first)
  folder = toy.folder if there == 'folder' else tmp_path / 'out'
  with pytest.raises((checks.ConfigError, checks.DataError), match=there):
    export(toy, folder, load(toy), tokenizer=tmp_path / 'nowhere')
  assert len(heard) == 1 and there in str(heard[0])
