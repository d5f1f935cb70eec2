"""Files are written by the gguf package; expected values come from NumPy.

The order of queries and keys is that of `LlamaModel.permute` in llama.cpp's
convert_hf_to_gguf.py, which `permute` repeats.
"""

import gguf as gguf_package
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import interop
from haikd.core import base
from haikd.core import checks
from haikd.interop import gguf
from haikd.interop import gguf_llama
from haikd.interop import placing

WIDTH, HEADS, KEYS, HIDDEN, DEPTH, VOCABULARY = 64, 4, 2, 96, 2, 40
QUERY, KEY = (WIDTH, WIDTH), (KEYS * WIDTH // HEADS, WIDTH)
Kind = gguf_package.GGMLQuantizationType

OPTIONS = dict(
    num_classes=VOCABULARY, width=WIDTH, depth=DEPTH, heads=HEADS,
    key_value_heads=KEYS, head_size=16, hidden=HIDDEN, rope_base=1e5,
    rope_scaling=None, window=None, window_layers=None, activation='silu',
    qk_norm=None, qkv_bias=False, output_bias=False, mlp_bias=False,
    epsilon=float(np.float32(1e-5)), tied=True)


def permute(values, heads):
  """Interleaves the two halves of each head, as llama.cpp does."""
  shape = heads, 2, len(values) // heads // 2, *values.shape[1:]
  return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)


def make_tensors(biases=False, tied=True):
  rng = np.random.RandomState(0)
  rand = lambda *shape: rng.randn(*shape).astype(np.float32)
  made = {'token_embd': rand(VOCABULARY, WIDTH), 'output_norm': rand(WIDTH)}
  if not tied:
    made['output'] = rand(VOCABULARY, WIDTH)
  for i in range(DEPTH):
    for name, shape in (
        ('attn_norm', (WIDTH,)), ('attn_q', QUERY), ('attn_k', KEY),
        ('attn_v', KEY), ('attn_output', QUERY), ('ffn_norm', (WIDTH,)),
        ('ffn_gate', (HIDDEN, WIDTH)), ('ffn_up', (HIDDEN, WIDTH)),
        ('ffn_down', (WIDTH, HIDDEN))):
      made[f'blk.{i}.{name}'] = rand(*shape)
  made = {f'{name}.weight': x for name, x in made.items()}
  if biases:
    for i in range(DEPTH):
      made[f'blk.{i}.attn_q.bias'] = rand(QUERY[0])
      made[f'blk.{i}.attn_k.bias'] = rand(KEY[0])
      made[f'blk.{i}.attn_v.bias'] = rand(KEY[0])
  return made


def write(path, tensors, kind='llama', quantised=None, **more):
  """Writes a file as llama.cpp does; `more` are additional fields."""
  writer = gguf_package.GGUFWriter(path, kind)
  writer.add_block_count(DEPTH)
  writer.add_context_length(512)
  writer.add_embedding_length(WIDTH)
  writer.add_feed_forward_length(HIDDEN)
  writer.add_head_count(HEADS)
  writer.add_head_count_kv(KEYS)
  writer.add_rope_freq_base(1e5)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_vocab_size(VOCABULARY)
  writer.add_token_list(['a'] * VOCABULARY)
  for name, value in more.items():
    name = f'{kind}.{name.replace("__", ".")}'
    if isinstance(value, str):
      writer.add_string(name, value)
    elif isinstance(value, float):
      writer.add_float32(name, value)
    elif isinstance(value, list):
      writer.add_array(name, value)
    else:
      writer.add_uint32(name, value)
  for name, values in tensors.items():
    heads = dict(attn_q=HEADS, attn_k=KEYS).get(name.split('.')[-2])
    if heads and kind == 'llama':
      values = permute(values, heads)
    if quantised is not None and values.ndim > 1:
      writer.add_tensor(name, gguf_package.quantize(values, quantised),
                        raw_dtype=quantised)
    else:
      writer.add_tensor(name, values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return f'gguf:{path}'


def expect(dtype=np.float32, stacked=False, **changes):
  """Returns an abstract network of the family llama."""
  options = {**OPTIONS, 'vocabulary': VOCABULARY, **changes}
  width, hidden = options['width'], options['hidden']
  query = options['heads'] * 16
  key = query * KEYS // HEADS
  block = {
      'norm_attn': dict(scale=(width,)), 'norm_mlp': dict(scale=(width,)),
      'attn/query': dict(w=(width, query)), 'attn/key': dict(w=(width, key)),
      'attn/value': dict(w=(width, key)), 'attn/output': dict(w=(query, width)),
      'mlp/gate': dict(w=(width, hidden)), 'mlp/up': dict(w=(width, hidden)),
      'mlp/down': dict(w=(hidden, width))}
  if options['qkv_bias']:
    for name, size in (('query', query), ('key', key), ('value', key)):
      block[f'attn/{name}']['b'] = (size,)
  shapes = dict(embed=dict(embeddings=(options['vocabulary'], width)),
                norm=dict(scale=(width,)))
  if not options['tied']:
    shapes['logits'] = dict(w=(width, options['vocabulary']))
  for module, parameters in block.items():
    if stacked:
      shapes[f'__layer_stack_no_per_layer/block/{module}'] = {
          name: (DEPTH, *shape) for name, shape in parameters.items()}
    else:
      shapes.update({f'block_{i}/{module}': parameters for i in range(DEPTH)})
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return base.Variables(jax.tree.map(
      lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype),
                                         sharding=place),
      shapes, is_leaf=lambda x: isinstance(x, tuple)), {})


def load(init, dtype=np.float32, kept_ids=None, stacked=False, **changes):
  return interop.load(
      'config.teacher.init', init, expect(dtype, stacked, **changes),
      options={**OPTIONS, **changes}, kept_ids=kept_ids).params


def test_metadata_gives_the_options(tmp_path):
  init = write(tmp_path / 'x.gguf', make_tensors())
  pretrained = interop.describe(init)
  assert pretrained.options == dict(OPTIONS, rope_base=float(np.float32(1e5)))
  assert (pretrained.model, pretrained.vocabulary, pretrained.tokenizer) == (
      'llama', VOCABULARY, init)


@pytest.mark.parametrize('kind', ('llama', 'qwen2'))
@pytest.mark.parametrize('stacked', (False, True))
def test_queries_and_keys_have_their_own_order_again(tmp_path, kind, stacked):
  made = make_tensors(biases=True)
  init = write(tmp_path / 'x.gguf', made, kind)
  assert interop.describe(init).options['qkv_bias']
  params = load(init, qkv_bias=True, stacked=stacked)
  for module, tensor in (('query', 'attn_q'), ('key', 'attn_k'),
                         ('value', 'attn_v')):
    if stacked:
      actual = jax.tree.map(
          lambda x: x[1],
          params[f'__layer_stack_no_per_layer/block/attn/{module}'])
    else:
      actual = params[f'block_1/attn/{module}']
    np.testing.assert_array_equal(actual['w'], made[f'blk.1.{tensor}.weight'].T)
    np.testing.assert_array_equal(actual['b'], made[f'blk.1.{tensor}.bias'])


def test_layouts_are_inverse_to_each_other():
  values = np.random.RandomState(0).randn(*QUERY)
  for rule in gguf_llama.tensors('llama', OPTIONS, ()).rules:
    stored = rule.layout.store(rule.layout.load(values))
    np.testing.assert_array_equal(stored, values)


@pytest.mark.parametrize('quantised', (
    Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1))
@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
def test_what_is_quantised_is_decoded(tmp_path, monkeypatch, quantised, dtype):
  # 40 rows in 14 steps.
  monkeypatch.setattr(gguf, '_DECODED_AT_ONCE', 3 * WIDTH)
  made = make_tensors()
  init = write(tmp_path / 'x.gguf', made, quantised=quantised)
  actual = load(init, dtype)['embed']['embeddings']
  coded = gguf_package.quantize(made['token_embd.weight'], quantised)
  expected = gguf_package.dequantize(coded, quantised).astype(jnp.dtype(dtype))
  np.testing.assert_array_equal(np.asarray(actual), expected)
  # Few bits keep the values close, so no row is mistaken for another.
  np.testing.assert_allclose(np.asarray(actual, np.float32),
                             made['token_embd.weight'], atol=0.5)


def test_rows_are_decoded_when_they_are_needed(tmp_path, monkeypatch):
  write(tmp_path / 'x.gguf', make_tensors(), quantised=Kind.Q8_0)
  reader, rows = gguf.Gguf(tmp_path / 'x.gguf'), []
  plain = gguf_package.dequantize
  monkeypatch.setattr(
      gguf_package, 'dequantize',
      lambda x, kind: (rows.append(len(x)), plain(x, kind))[1])
  tensor = reader.read('token_embd.weight', np.dtype(np.float32))
  decoded = np.asarray(tensor)
  assert sum(rows) == VOCABULARY
  np.testing.assert_array_equal(tensor[4:7, 3:9], decoded[4:7, 3:9])
  ids = np.array([30, 2])
  np.testing.assert_array_equal(tensor.T[1:5, ids], decoded.T[1:5, ids])
  np.testing.assert_array_equal(np.asarray(tensor.T), decoded.T)
  assert sum(rows) == VOCABULARY + 3 + 2 + VOCABULARY


@pytest.mark.parametrize('quantised', (Kind.F32, Kind.F16, Kind.BF16))
def test_plain_numbers_are_mapped(tmp_path, quantised):
  write(tmp_path / 'x.gguf', make_tensors(), quantised=quantised)
  reader = gguf.Gguf(tmp_path / 'x.gguf')
  actual = reader.read('token_embd.weight', np.dtype(np.float32))
  assert isinstance(actual, np.memmap)
  assert actual.dtype == reader.shapes['token_embd.weight'].dtype
  assert actual.shape == (VOCABULARY, WIDTH)


@pytest.mark.parametrize('quantised', (None, Kind.Q8_0))
def test_narrower_network_takes_whole_heads(tmp_path, monkeypatch, quantised):
  monkeypatch.setattr(placing, '_BLOCK', 512)  # Four rows, or less than one.
  made = make_tensors(tied=False)
  init = write(tmp_path / 'x.gguf', made, quantised=quantised)
  if quantised:
    decode = lambda x: gguf_package.dequantize(
        gguf_package.quantize(x, quantised), quantised)
    made = {name: decode(x) if x.ndim > 1 else x for name, x in made.items()}
  ids = np.array([5, 39])
  params = load(init, width=32, heads=2, key_value_heads=1, hidden=48,
                tied=False, vocabulary=2, kept_ids=ids)
  np.testing.assert_array_equal(params['block_0/attn/query']['w'],
                                made['blk.0.attn_q.weight'][:32, :32].T)
  np.testing.assert_array_equal(params['block_0/attn/key']['w'],
                                made['blk.0.attn_k.weight'][:16, :32].T)
  np.testing.assert_array_equal(params['logits']['w'],
                                made['output.weight'][ids, :32].T)
  np.testing.assert_array_equal(params['embed']['embeddings'],
                                made['token_embd.weight'][ids, :32])
  np.testing.assert_array_equal(params['block_1/mlp/down']['w'],
                                made['blk.1.ffn_down.weight'][:32, :48].T)


def test_other_groups_of_heads_are_refused(tmp_path):
  init = write(tmp_path / 'x.gguf', make_tensors())
  with pytest.raises(checks.ConfigError,
                     match='and 2 heads to each of key_value'):
    load(init, key_value_heads=4)


@pytest.mark.parametrize('scaling, expected', (
    (dict(rope__scaling__type='none'), None),
    (dict(rope__scaling__type='linear', rope__scaling__factor=4.0),
     dict(kind='linear', factor=4.0)),
    (dict(rope__scaling__type='yarn', rope__scaling__factor=2.0,
          rope__scaling__original_context_length=256),
     dict(kind='yarn', factor=2.0, original_length=256)),
))
def test_scaling_of_positions(tmp_path, scaling, expected):
  init = write(tmp_path / 'x.gguf', make_tensors(), **scaling)
  assert interop.describe(init).options['rope_scaling'] == expected


def llama3_factors(factor, low, high, length, head_size=16, rope_base=1e5):
  """Returns what convert_hf_to_gguf.py writes, frequency by frequency."""
  factors = []
  for i in range(0, head_size, 2):
    wave_length = 2 * np.pi * rope_base**(i / head_size)
    if wave_length < length / high:
      factors.append(1)
    elif wave_length > length / low:
      factors.append(factor)
    else:
      smooth = (length / wave_length - low) / (high - low)
      factors.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(factors, np.float32)


def test_scaling_of_llama3_is_inferred_from_its_factors(tmp_path):
  made = make_tensors()
  made['rope_freqs.weight'] = llama3_factors(32.0, 1.0, 4.0, 8192)
  init = write(tmp_path / 'x.gguf', made)
  assert interop.describe(init).options['rope_scaling'] == dict(
      kind='llama3', factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
      original_length=8192)
  assert load(init)


def test_other_factors_are_refused(tmp_path):
  made = make_tensors()
  made['rope_freqs.weight'] = llama3_factors(32.0, 1.0, 8.0, 8192)
  init = write(tmp_path / 'x.gguf', made)
  with pytest.raises(checks.DataError,
                     match='x.gguf: rope_freqs.weight must .* other'):
    interop.describe(init)


@pytest.mark.parametrize('kind, more, match', (
    ('gemma', {}, 'x.gguf: general.architecture must be one of llama, qwen2, '
     "qwen3; got 'gemma'"),
    ('llama', dict(rope__scaling__type='longrope'),
     "x.gguf: llama.rope.scaling.type must be none, .* got 'longrope'"),
    ('llama', dict(rope__scaling__type='yarn'),
     "got 'yarn', original_context_length=None"),
    ('llama', dict(expert_count=8), "got {'llama.expert_count': 8}"),
    ('llama', dict(attention__sliding_window_pattern=[1, 0]), 'pattern'),
    ('llama', dict(rope__dimension_count=8),
     'x.gguf: llama.rope.dimension_count must be 16; got 8'),
    ('qwen2', dict(attention__value_length=8),
     'x.gguf: qwen2.attention.value_length must be 16; got 8'),
))
def test_what_is_not_supported_is_refused_by_name(tmp_path, kind, more, match):
  init = write(tmp_path / 'x.gguf', make_tensors(), kind, **more)
  with pytest.raises(checks.DataError, match=match):
    interop.describe(init)


def test_unknown_quantisation_is_refused_by_name(tmp_path, monkeypatch):

  def fail(*unused):
    raise NotImplementedError

  init = write(tmp_path / 'x.gguf', make_tensors(), quantised=Kind.Q8_0)
  monkeypatch.setattr(gguf_package, 'dequantize', fail)
  with pytest.raises(checks.DataError, match='gguf decodes; got Q8_0'):
    interop.describe(init)


@pytest.mark.parametrize('size', (0, 3, 100, 2000, -100))
def test_broken_file_is_refused(tmp_path, size):
  path = tmp_path / 'x.gguf'
  init = write(path, make_tensors())
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(checks.DataError, match='complete GGUF file') as error:
    interop.describe(init)
  assert '\n' not in str(error.value)


def test_missing_tensor_is_named(tmp_path):
  made = make_tensors()
  del made['blk.1.ffn_up.weight']
  made['blk.0.extra.weight'] = made['output_norm.weight']
  init = write(tmp_path / 'x.gguf', made)
  with pytest.raises(checks.DataError, match='no blk.1.ffn_up.weight, a surplus'
                     ' blk.0.extra.weight'):
    load(init)


def test_file_without_a_table_is_refused(tmp_path):
  made = make_tensors()
  del made['token_embd.weight']
  init = write(tmp_path / 'x.gguf', made)
  with pytest.raises(checks.DataError, match='must hold token_embd.weight'):
    interop.describe(init)


@pytest.mark.parametrize('value', (0, '4', [4, 4], 4.0))
def test_number_of_heads_is_a_number(tmp_path, monkeypatch, value):
  add = {int: 'add_uint32', str: 'add_string', list: 'add_array',
         float: 'add_float32'}[type(value)]
  monkeypatch.setattr(
      gguf_package.GGUFWriter, 'add_head_count',
      lambda self, unused: getattr(self, add)('llama.attention.head_count',
                                              value))
  init = write(tmp_path / 'x.gguf', make_tensors())
  with pytest.raises(checks.DataError,
                     match='x.gguf: llama.attention.head_count must be'):
    interop.describe(init)


def test_any_error_of_metadata_names_the_file(tmp_path, monkeypatch):
  def fail(*unused):
    raise TypeError('no such sum')

  monkeypatch.setattr(gguf_llama, 'read_metadata', fail)
  init = write(tmp_path / 'x.gguf', make_tensors())
  with pytest.raises(checks.DataError, match='x.gguf must .*no such sum'):
    interop.describe(init)


def test_home_is_expanded_for_the_tokenizer_too(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  init = write(tmp_path / 'x.gguf', make_tensors())
  assert interop.describe('gguf:~/x.gguf') == interop.describe(init)
  assert interop.describe('gguf:~/x.gguf').tokenizer == init
