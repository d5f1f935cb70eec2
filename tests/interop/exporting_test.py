"""What is written is read again by the safetensors library."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from haikd import checks
from haikd import interop
from haikd import placement
from haikd.interop import storing

FILE = 'model.safetensors'


def load(toy, init=None, **options):
  expected = toy.expect(**options)
  options = {**toy.options, **options}
  return interop.load('config.student.init', init or toy.init, expected,
                      options=options).params


def export(toy, folder, params, options=None, tokenizer=None):
  interop.export(folder, model='toy', options=options or toy.options,
                 params=params, tokenizer=tokenizer, card='# A toy\n')


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('stacked', (False, True))
@pytest.mark.parametrize('tied', (False, True))
def test_tensors_are_those_that_were_read(toy, tmp_path, stacked, tied):
  toy.write(toy.make_tensors(tied), tied=tied)
  params = load(toy, stacked=stacked, tied=tied)
  export(toy, tmp_path / 'out', params, dict(toy.options, tied=tied))
  found = safetensors.load_file(tmp_path / 'out' / FILE)
  expected = {name: x for name, x in toy.make_tensors(tied).items()
              if not name.endswith('buffer')}
  assert set(found) == set(expected)
  for name, values in expected.items():
    np.testing.assert_array_equal(found[name], values, err_msg=name)


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
  mesh = placement.build_mesh(dict(replica=2, fsdp=2, tensor=2))
  split = jax.device_put(
      params, placement.place(mesh, params, {'up/w': -1}))
  export(toy, tmp_path / 'one', params)
  export(toy, tmp_path / 'numpy', jax.tree.map(np.asarray, params))
  export(toy, tmp_path / 'split', split)
  one = contents(tmp_path / 'one')
  assert one == contents(tmp_path / 'numpy') == contents(tmp_path / 'split')


def test_config_says_the_vocabulary_and_card_is_the_readme(toy, tmp_path):
  export(toy, tmp_path / 'out', load(toy))
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config == dict(toy.options, model_type='toy', architectures=['Toy'],
                        vocab_size=12, torch_dtype='float32')
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
  # Of 16, 24, 8 and 100 bytes: 40 fit, then 8; 100 have their own.
  planned = []
  for i, size in enumerate((4, 6, 2, 25)):
    values = np.full(size, i, np.float32)
    like = jax.ShapeDtypeStruct(values.shape, values.dtype)
    planned.append(storing.Tensor(f't{i}', like, lambda values=values: values))
  storing.write(tmp_path, planned, limit=40)
  index = json.loads((tmp_path / f'{FILE}.index.json').read_text())
  assert index['metadata']['total_size'] == 148
  name = 'model-0000{}-of-00003.safetensors'
  assert index['weight_map'] == dict(
      t0=name.format(1), t1=name.format(1), t2=name.format(2),
      t3=name.format(3))
  found = safetensors.load_file(tmp_path / name.format(1))
  np.testing.assert_array_equal(found['t1'], np.ones(6))
  assert storing.is_ours(tmp_path)


def test_tensors_are_read_one_at_a_time(tmp_path):
  held = []

  def plan(i):
    def read():
      assert not held, 'two at once'
      values = np.zeros(4, np.float32)
      held.append(i)
      return values.view(Released)

    like = jax.ShapeDtypeStruct((4,), np.dtype(np.float32))
    return storing.Tensor(f't{i}', like, read)

  class Released(np.ndarray):

    def __del__(self):
      held.clear()

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
  found = contents(tmp_path / 'out')
  assert set(found) == {'config.json', 'README.md', FILE, 'tokenizer.json',
                        'tokenizer_config.json'}
  assert found['tokenizer.json'] == (source / 'tokenizer.json').read_bytes()
  config = json.loads(found['config.json'])
  assert (config['eos_token_id'], config['pad_token_id']) == (5, 3)
  assert config['bos_token_id'] is None


def test_tokenizer_may_be_its_file(toy, tmp_path):
  path = tmp_path / 'mine.json'
  path.write_text('{}')
  export(toy, tmp_path / 'out', load(toy), tokenizer=path)
  assert (tmp_path / 'out' / 'tokenizer.json').read_text() == '{}'


def test_tokenizer_that_is_none_is_refused(toy, tmp_path):
  with pytest.raises(checks.DataError, match='folder with tokenizer.json'):
    export(toy, tmp_path / 'out', load(toy), tokenizer=tmp_path / 'nowhere')


def test_earlier_export_is_replaced(toy, tmp_path):
  params = load(toy)
  export(toy, tmp_path / 'out', params)
  (tmp_path / 'out' / 'old').write_text('')
  export(toy, tmp_path / 'out', jax.tree.map(lambda x: x + 1, params))
  assert set(contents(tmp_path / 'out')) == {'config.json', 'README.md', FILE}
  found = safetensors.load_file(tmp_path / 'out' / FILE)
  np.testing.assert_array_equal(found['norm.weight'],
                                toy.tensors['norm.weight'] + 1)
  assert {path.name for path in tmp_path.iterdir()} == {'out', 'toy'}


def test_folder_of_others_is_left_alone(toy, tmp_path):
  before = contents(toy.folder)
  with pytest.raises(checks.ConfigError, match='folder must be empty'):
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
  with pytest.raises(checks.ConfigError, match='folder must be local'):
    export(toy, 'gs://bucket/out', load(toy))


@pytest.mark.parametrize('change, match', (
    (lambda params: params.pop('norm'), 'no norm/scale'),
    (lambda params: params.update(gate=dict(w=jnp.ones(3))),
     'gate/w, which has no place'),
    (lambda params: params.pop('block_2/attn/key'), '2 parts of h.2.qkv'),
))
def test_other_parameters_are_refused(toy, tmp_path, change, match):
  params = load(toy)
  change(params)
  with pytest.raises(checks.DataError, match=match):
    export(toy, tmp_path / 'out', params)
  assert not (tmp_path / 'out').exists()
