"""The metadata and tensor names of GGUF files, for the model `llama`."""

from collections.abc import Collection, Mapping
import math
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import gguf
from haikd.interop import rules

MODEL = 'llama'
ARCHITECTURES = ('llama', 'qwen2', 'qwen3')

_FACTORS = 'rope_freqs.weight'  # Divide the frequencies in llama3's scaling.


def read_metadata(file: gguf.Gguf,
                  ignore: Optional[fields_lib.Ignore] = None) -> dict[str, Any]:
  """Returns the options of the model `llama` that a file is for.

  Args:
    file: an open file.
    ignore: unknown fields that are not refused.

  Raises:
    DataError: its architecture or a field of its metadata is not supported.
  """
  architecture = file.metadata.get('general.architecture')
  if architecture not in ARCHITECTURES:
    raise checks.DataError(
        f'{file.path}: general.architecture must be one of '
        f'{", ".join(ARCHITECTURES)}; got {architecture!r}. Use the '
        'safetensors of the model.')
  prefix = f'{architecture}.'
  values = {name.removeprefix(prefix): value
            for name, value in file.metadata.items() if name.startswith(prefix)}
  fields = fields_lib.Fields(file.path, values, prefix, ignore=ignore)
  # The training length limits nothing, and the tensors give the size of the
  # vocabulary.
  fields.ignore(('context_length', 'vocab_size'))
  names = file.shapes
  if 'token_embd.weight' not in names:
    raise checks.DataError(
        f'{file.path} must hold token_embd.weight; got '
        f'{checks.abbreviate(sorted(names)) or "no tensors"}. Use the file of '
        'a complete network.')
  width = fields.take('embedding_length', kind=int)
  heads = fields.take('attention.head_count', kind=int)
  head_size = fields.take('attention.key_length', width // heads, kind=int)
  fields.expect('attention.value_length', head_size)
  fields.expect('rope.dimension_count', head_size)
  base = fields.take('rope.freq_base', 10000.0, kind=float)
  options = dict(
      num_classes=names['token_embd.weight'].shape[0],
      width=width,
      depth=fields.take(
          'block_count', kind=int, at_most=fields_lib.MOST_LAYERS),
      heads=heads,
      key_value_heads=fields.take('attention.head_count_kv', heads, kind=int),
      head_size=head_size,
      hidden=fields.take('feed_forward_length', kind=int),
      rope_base=base,
      rope_scaling=_scaling(file, fields, base, head_size),
      window=fields.take('attention.sliding_window', None) or None,
      window_layers=None,
      qk_norm='head' if 'blk.0.attn_q_norm.weight' in names else None,
      qkv_bias='blk.0.attn_q.bias' in names,
      output_bias='blk.0.attn_output.bias' in names,
      mlp_bias='blk.0.ffn_up.bias' in names,
      activation='silu',
      epsilon=fields.take('attention.layer_norm_rms_epsilon', kind=float),
      tied='output.weight' not in names)
  fields.done()
  return options


def tensors(architecture: str, options: Mapping[str, Any],
            names: Collection[str]) -> rules.Tensors:
  """Returns where the parameters of the model `llama` are found.

  Args:
    architecture: that the file names.
    options: of the model.
    names: of the tensors in the file.
  """
  query = key = rules.TRANSPOSED
  if architecture == 'llama':  # The others are stored as in Hugging Face files.
    query, key = (_interleaved(options[name]) for name in
                  ('heads', 'key_value_heads'))

  def linear(module, tensor, bias, layout=rules.TRANSPOSED):
    parameters = ('w', 'weight'), ('b', 'bias')
    return [
        rules.Rule(f'block/{module}', name, f'blk.{{layer}}.{tensor}.{suffix}',
                   layout) for name, suffix in parameters[:1 + bias]
    ]

  biases = options['qkv_bias']
  network_rules = [
      rules.Rule('embed', 'embeddings', 'token_embd.weight', vocabulary=0),
      *rules.norm('block/norm_attn', 'blk.{layer}.attn_norm', offset=False),
      *linear('attn/query', 'attn_q', biases, query),
      *linear('attn/key', 'attn_k', biases, key),
      *linear('attn/value', 'attn_v', biases),
      *linear('attn/output', 'attn_output', options['output_bias']),
      *rules.norm('block/norm_mlp', 'blk.{layer}.ffn_norm', offset=False),
      *linear('mlp/gate', 'ffn_gate', options['mlp_bias']),
      *linear('mlp/up', 'ffn_up', options['mlp_bias']),
      *linear('mlp/down', 'ffn_down', options['mlp_bias']),
      *rules.norm('norm', 'output_norm', offset=False),
  ]
  if options['qk_norm']:
    for name, tensor in (('norm_query', 'attn_q_norm'),
                         ('norm_key', 'attn_k_norm')):
      network_rules.append(
          rules.Rule(f'block/attn/{name}', 'scale',
                     f'blk.{{layer}}.{tensor}.weight'))
  if not options['tied']:
    output = 'output' if 'output.weight' in names else 'token_embd'
    network_rules.append(
        rules.Rule('logits', 'w', f'{output}.weight', rules.TRANSPOSED,
                   vocabulary=1))
  return rules.Tensors(tuple(network_rules), ignored=(_FACTORS,))


def _interleaved(heads):
  """Returns the layout of the queries or keys of llama.cpp.

  RoPE rotates pairs of features. llama.cpp stores the two features of a pair
  side by side; haikd stores the first features of all pairs, then the second.

  Args:
    heads: the number of query or key heads.
  """

  def swap(values, *sizes):
    # Decodes a quantised matrix completely; it is that of one block only.
    values = np.asarray(values)
    shape = heads, *sizes, *values.shape[1:]
    return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)

  return rules.Layout(
      load=lambda x: swap(x, x.shape[0] // heads // 2, 2).T,
      store=lambda x: swap(x.T, 2, x.shape[-1] // heads // 2))


def _scaling(file, fields, base, head_size):
  """Takes the fields of a scaling; returns the option `rope_scaling`."""
  kind = fields.take('rope.scaling.type', 'none', kind=str)
  factor = fields.take('rope.scaling.factor', 1.0, kind=float)
  length = fields.take('rope.scaling.original_context_length', None,
                       kind=int)
  fields.ignore(('rope.scaling.finetuned',))
  if _FACTORS in file.shapes:
    return _llama3(file, base, head_size)
  if kind == 'none':
    return None
  if kind == 'linear':
    return dict(kind='linear', factor=factor)
  if kind == 'yarn' and length:
    return dict(kind='yarn', factor=factor, original_length=length)
  raise checks.DataError(
      f'{fields.title("rope.scaling.type")} must be none, linear, or yarn with '
      f'original_context_length; got {kind!r}, original_context_length='
      f'{length}. Use the safetensors of the model.')


def _llama3(file, base, head_size):
  """Returns the numbers of llama3's scaling.

  The file holds only the resulting divisors of the frequencies. All of Meta's
  models have the same numbers except for the factor, which is the largest
  divisor. Models whose divisors differ from these are refused.
  """
  divisors = file.read(_FACTORS, np.dtype(np.float32))
  scaling = dict(
      kind='llama3',
      factor=float(divisors.max()),
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_length=8192)
  turns = 8192 / (2 * math.pi) * base**-(np.arange(0, head_size, 2) / head_size)
  unscaled = np.clip((turns - 1) / 3, 0, 1)  # The share that is not scaled.
  expected = 1 / (unscaled + (1 - unscaled) / scaling['factor'])
  if divisors.shape != expected.shape or not np.allclose(
      divisors, expected, 1e-3):
    raise checks.DataError(
        f'{file.path}: {_FACTORS} must be that of llama3 with '
        'low_freq_factor=1, high_freq_factor=4 and 8192 positions; got other '
        'numbers. Use the safetensors of the model.')
  return scaling
