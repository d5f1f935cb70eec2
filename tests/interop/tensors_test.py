"""Files are written by the safetensors library, or broken by hand."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from haikd.core import checks
from haikd.interop import tensors

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(4, dtype=np.float16)


def raw(folder, header, data):
  """Writes a file by hand."""
  content = json.dumps(header).encode() if isinstance(header, dict) else header
  (folder / tensors.WEIGHTS).write_bytes(
      len(content).to_bytes(8, 'little') + content + data)


def entry(begin, end, shape=(2,), dtype='F32'):
  return dict(dtype=dtype, shape=list(shape), data_offsets=[begin, end])


def shards(folder, weight_map, **files):
  for name, content in files.items():
    safetensors.save_file(content, folder / f'{name}.safetensors')
  (folder / tensors.INDEX).write_text(json.dumps(dict(weight_map=weight_map)))


@pytest.mark.parametrize('dtype', (
    'float64', 'float32', 'float16', 'bfloat16', 'int64', 'int8', 'uint8',
    'bool'))
def test_numbers_are_those_that_the_library_wrote(tmp_path, dtype):
  values = A.astype(jnp.dtype(dtype))
  safetensors.save_file(dict(a=values, scalar=values[1, 2:].reshape(())),
                        tmp_path / tensors.WEIGHTS)
  reader = tensors.Safetensors(tmp_path)
  assert reader.shapes['a'].shape == (2, 3)
  assert reader.shapes['a'].dtype == dtype
  actual = reader.read('a', np.float32)
  assert actual.dtype == dtype
  np.testing.assert_array_equal(actual, values)
  assert reader.read('scalar', np.float32).shape == ()


def test_tensor_is_mapped_and_cannot_be_written(tmp_path):
  safetensors.save_file(dict(a=A), tmp_path / tensors.WEIGHTS)
  actual = tensors.Safetensors(tmp_path).read('a', np.float32)
  assert isinstance(actual, np.memmap) and not actual.flags.writeable


def test_empty_tensor_is_no_trouble(tmp_path):
  safetensors.save_file(dict(a=A[:0]), tmp_path / tensors.WEIGHTS)
  reader = tensors.Safetensors(tmp_path)
  assert reader.read('a', np.float32).shape == (0, 3)


def test_shards_are_read_as_one(tmp_path):
  shards(tmp_path, dict(a='x.safetensors', b='y.safetensors'),
         x=dict(a=A), y=dict(b=B))
  reader = tensors.Safetensors(tmp_path)
  np.testing.assert_array_equal(reader.read('a', np.float32), A)
  np.testing.assert_array_equal(reader.read('b', np.float32), B)
  assert set(reader.shapes) == {'a', 'b'}


@pytest.mark.parametrize('weight_map, match', (
    (dict(a='x.safetensors', c='y.safetensors'), 'y.safetensors.* is no file'),
    (dict(a='x.safetensors', c='x.safetensors'), 'does not hold c'),
    (dict(a='../x.safetensors'), 'in another folder'),
    (dict(a=3), 'no weight_map of names'),
    ([], 'no weight_map of names'),
    (dict(a='x' * 300), "'x{80}', which it names, is no file"),
))
def test_broken_index_is_refused(tmp_path, weight_map, match):
  shards(tmp_path, weight_map, x=dict(a=A))
  with pytest.raises(checks.DataError, match=match):
    tensors.Safetensors(tmp_path)


def test_tensor_in_two_shards_is_refused(tmp_path):
  shards(tmp_path, dict(a='x.safetensors', b='y.safetensors'),
         x=dict(a=A), y=dict(a=A, b=B))
  with pytest.raises(checks.DataError, match='a is in another file too'):
    tensors.Safetensors(tmp_path)


@pytest.mark.parametrize('header, data, match', (
    (b'{', b'', 'complete safetensors file'),
    (b'[]', b'', 'complete safetensors file'),
    (dict(a=entry(0, 8)), b'0' * 7, 'file not fully covered'),
    (dict(a=entry(0, 8)), b'0' * 9, 'file not fully covered'),
    (dict(a=entry(0, 8), b=entry(4, 12)), b'0' * 12, 'offset for tensor `b`'),
    (dict(a=entry(0, 8), b=entry(12, 20)), b'0' * 20, 'offset for tensor `b`'),
    (dict(a=entry(0, 8, (3,))), b'0' * 8, 'shape, data type, or offset'),
    (dict(a=entry(0, 8, (-1, -2))), b'0' * 8, 'integer `-1`'),
    (dict(a=entry(0, 8, '2')), b'0' * 8, 'string "2"'),
    (dict(a=entry(0, 8, (2.0,))), b'0' * 8, 'floating point `2.0`'),
    (dict(a=entry(0.0, 8)), b'0' * 8, 'floating point `0.0`'),
    (dict(a=entry(0, 8, dtype='Q4')), b'0' * 8, 'Q4'),
    # The package knows more dtypes than NumPy.
    (dict(a=entry(0, 8, (16,), dtype='F4')), b'0' * 8, 'F4, which is not kn'),
    (dict(a=[]), b'', 'TensorInfo'),
    # The package takes the last of two.
    (b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
     b'"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}', b'0' * 8,
     'a is twice in its header'),
))
def test_broken_file_is_refused(tmp_path, header, data, match):
  raw(tmp_path, header, data)
  with pytest.raises(checks.DataError, match=match) as error:
    tensors.Safetensors(tmp_path)
  assert tensors.WEIGHTS in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('size', (0, 4, 8, 20, 10**9))
def test_truncated_header_is_refused(tmp_path, size):
  path = tmp_path / tensors.WEIGHTS
  safetensors.save_file(dict(a=A), path)
  content = path.read_bytes()
  if size == 10**9:  # Longer than the format allows.
    content, size = size.to_bytes(8, 'little') + content[8:], len(content)
  path.write_bytes(content[:size])
  with pytest.raises(checks.DataError, match='complete safetensors file'):
    tensors.Safetensors(tmp_path)


def test_pickles_are_never_opened(tmp_path):
  (tmp_path / 'pytorch_model.bin').write_bytes(b'cos\nsystem\n')
  with pytest.raises(checks.DataError,
                     match='pytorch_model.bin may run any code.*convert it w'):
    tensors.Safetensors(tmp_path)


def test_folder_without_weights_says_what_it_holds(tmp_path):
  (tmp_path / 'adapter.safetensors').write_bytes(b'')
  with pytest.raises(checks.DataError, match='got adapter.safetensors'):
    tensors.Safetensors(tmp_path)


@pytest.mark.parametrize('wrap, removed', (
    ('_orig_mod.{}', "'_orig_mod.'"),
    ('module.{}', "'module.'"),
    ('module._orig_mod.{}', "'_orig_mod.' and 'module.'"),
    ('base_model.model.{}', "'base_model.model.'"),
    ('{}', None),
))
def test_names_are_without_wrappers(tmp_path, caplog, wrap, removed):
  named = {wrap.format(name): x for name, x in (('h.0.a', A), ('h.b', B))}
  safetensors.save_file(named, tmp_path / tensors.WEIGHTS)
  with caplog.at_level('INFO', 'haikd'):
    reader = tensors.Safetensors(tmp_path)
  assert set(reader.shapes) == {'h.0.a', 'h.b'}
  np.testing.assert_array_equal(reader.read('h.0.a', np.float32), A)
  said = [record.getMessage() for record in caplog.records]
  assert said == ([] if removed is None else [
      f'{tmp_path}: {removed} is left out of the names of all tensors; a '
      'wrapper of PyTorch has added it.'])


def test_wrappers_inside_of_names_are_left_out(tmp_path):
  safetensors.save_file({
      'model._fsdp_wrapped_module.h.0._checkpoint_wrapped_module.a': A,
      'model._fsdp_wrapped_module.b': B}, tmp_path / tensors.WEIGHTS)
  assert set(tensors.Safetensors(tmp_path).shapes) == {'model.h.0.a', 'model.b'}


def test_prefix_of_some_names_is_a_part_of_them(tmp_path):
  named = {'module.a': A, 'b': B}
  safetensors.save_file(named, tmp_path / tensors.WEIGHTS)
  assert set(tensors.Safetensors(tmp_path).shapes) == set(named)


def test_names_that_wrappers_alone_distinguish_are_refused(tmp_path):
  safetensors.save_file({'h.a': A, 'h._orig_mod.a': B},
                        tmp_path / tensors.WEIGHTS)
  with pytest.raises(checks.DataError, match='each tensor once; got some tw'):
    tensors.Safetensors(tmp_path)


@pytest.mark.parametrize('name', (
    'model.q_proj.lora_A.weight', 'model.q_proj.base_layer.weight',
    'base_model.model.q_proj.lora_B.default.weight'))
def test_adapter_that_is_not_merged_is_named(tmp_path, name):
  safetensors.save_file({'model.q_proj.weight': A, name: A},
                        tmp_path / tensors.WEIGHTS)
  with pytest.raises(checks.DataError,
                     match=f'adapter too: {name}. Merge it .*merge_and_unload'):
    tensors.Safetensors(tmp_path)


def test_pointer_of_git_lfs_is_named(tmp_path):
  (tmp_path / tensors.WEIGHTS).write_text(
      'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n')
  with pytest.raises(checks.DataError, match='Git LFS; `git lfs pull`'):
    tensors.Safetensors(tmp_path)


def test_shards_without_their_index_are_told_apart(tmp_path):
  name = 'model-00001-of-00002.safetensors'
  safetensors.save_file(dict(a=A), tmp_path / name)
  with pytest.raises(checks.DataError, match=(
      f'got {name}. Fetch model.safetensors.index.json too, or rename')):
    tensors.Safetensors(tmp_path)
