"""Llama 2 and 3, SmolLM2, Mistral, Qwen 2 and 3."""

from collections.abc import Iterable, Mapping
from typing import Any

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop import rope
from haikd.interop import rules as rules_lib

MODEL = 'llama'
MODEL_TYPES = ('llama', 'mistral', 'qwen2', 'qwen3')
LENGTH = 'max_position_embeddings'

_CLASSES = dict(
    llama='Llama', mistral='Mistral', qwen2='Qwen2', qwen3='Qwen3')
_FULL, _SLIDING = 'full_attention', 'sliding_attention'

_TOKENS = 'embed_tokens.weight'

# The linear maps of a block: module, tensors and the option that gives it a
# bias.
_LINEAR = (
    ('attn/query', 'self_attn.q_proj', 'qkv_bias'),
    ('attn/key', 'self_attn.k_proj', 'qkv_bias'),
    ('attn/value', 'self_attn.v_proj', 'qkv_bias'),
    ('attn/output', 'self_attn.o_proj', 'output_bias'),
    ('mlp/gate', 'mlp.gate_proj', 'mlp_bias'),
    ('mlp/up', 'mlp.up_proj', 'mlp_bias'),
    ('mlp/down', 'mlp.down_proj', 'mlp_bias'))
_NORMS = (('norm_attn', 'input_layernorm'),
          ('norm_mlp', 'post_attention_layernorm'))
_QK_NORMS = (('attn/norm_query', 'self_attn.q_norm'),
             ('attn/norm_key', 'self_attn.k_norm'))


def read_config(fields: fields_lib.Fields) -> dict[str, Any]:
  """Returns the options of `models.llama` that a config gives.

  Args:
    fields: of `config.json`.

  Returns:
    Options.

  Raises:
    DataError: a field or an architecture that is not supported.
  """
  model_type = fields.take('model_type')
  prefix = _CLASSES[model_type]
  options_lib.read_architecture(
      fields, (f'{prefix}ForCausalLM', f'{prefix}Model'))
  width = fields.take('hidden_size', kind=int)
  heads = fields.take('num_attention_heads', kind=int)
  # Without the field transformers uses these defaults.
  head_size = fields.take('head_dim', 128 if model_type == 'qwen3' else None,
                          kind=int, null=True)
  head_size = head_size or width // heads
  if model_type == 'llama':
    key_value_heads = fields.take('num_key_value_heads', None, kind=int)
  else:
    key_value_heads = fields.take('num_key_value_heads', kind=int)
  depth = fields.take('num_hidden_layers', kind=int)
  options = dict(
      num_classes=fields.take('vocab_size', kind=int),
      width=width,
      depth=depth,
      heads=heads,
      key_value_heads=key_value_heads or heads,
      head_size=head_size,
      hidden=fields.take('intermediate_size', kind=int),
      activation=options_lib.read_activation(fields, 'hidden_act'),
      epsilon=fields.take('rms_norm_eps', 1e-6, kind=float),
      tied=fields.take('tie_word_embeddings', False, kind=bool),
      qk_norm=model_type == 'qwen3',
      mlp_bias=(model_type == 'llama' and
                fields.take('mlp_bias', False, kind=bool)))
  has_biases = (model_type in ('llama', 'qwen3') and
                fields.take('attention_bias', False, kind=bool))
  options.update(
      qkv_bias=model_type == 'qwen2' or has_biases, output_bias=has_biases)
  options.update(_read_window(fields, model_type, depth))
  options.update(rope.read(fields))
  fields.expect('rope_interleaved', False)
  fields.ignore(('attention_dropout', 'is_llama_config'))
  fields.done()
  return options


def tensors(options: Mapping[str, Any],
            names: Iterable[str]) -> rules_lib.Tensors:
  """Returns where each parameter is found.

  Args:
    options: of `models.llama`.
    names: of the tensors in the file; empty for the names of a new file.

  Returns:
    The rules of all parameters.
  """
  options = options_lib.complete(MODEL, options)
  # A network without logits is saved without the prefix.
  prefix = '' if _TOKENS in names else 'model.'
  layer = prefix + 'layers.{layer}.'
  rules = [
      rules_lib.Rule('embed', 'embeddings', prefix + _TOKENS, vocabulary=0)
  ]
  for module, tensor, bias in _LINEAR:
    rules.extend(rules_lib.linear(
        f'block/{module}', layer + tensor, bias=options[bias]))
  for module, tensor in _NORMS + (_QK_NORMS if options['qk_norm'] else ()):
    rules.extend(rules_lib.norm(
        f'block/{module}', layer + tensor, offset=False))
  rules.extend(rules_lib.norm('norm', f'{prefix}norm', offset=False))
  return rules_lib.decoder(rules, tied=options['tied'],
                           ignored=('*.rotary_emb.inv_freq',))


def write_config(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a config that mean the same as options.

  Args:
    options: of `models.llama`.

  Returns:
    The fields of `config.json`, with the size of the vocabulary if the options
    have `num_classes`.

  Raises:
    ConfigError: no model type has all of these options together.
  """
  options = options_lib.complete(MODEL, options)
  width, heads = options['width'], options['heads']
  model_type = _model_type(options)
  values = dict(
      architectures=[f'{_CLASSES[model_type]}ForCausalLM'],
      model_type=model_type,
      hidden_size=width,
      num_hidden_layers=options['depth'],
      num_attention_heads=heads,
      num_key_value_heads=options['key_value_heads'] or heads,
      head_dim=options['head_size'] or width // heads,
      intermediate_size=options['hidden'] or -(-8 * width // (3 * 64)) * 64,
      hidden_act=options_lib.write_activation(options['activation']),
      rms_norm_eps=options['epsilon'],
      tie_word_embeddings=options['tied'],
      **rope.write(options['rope_base'], options['rope_scaling']))
  if 'num_classes' in options:
    values['vocab_size'] = options['num_classes']
  if model_type in ('llama', 'qwen3'):
    values['attention_bias'] = options['qkv_bias']
  if model_type == 'llama':
    values['mlp_bias'] = options['mlp_bias']
  else:
    values['sliding_window'] = options['window']
  if model_type in ('qwen2', 'qwen3'):
    values.update(
        use_sliding_window=options['window'] is not None,
        layer_types=[_SLIDING if is_chosen else _FULL
                     for is_chosen in _has_window(options)])
  return values


def _read_window(fields, model_type, depth):
  """Takes the fields of attention windows, which depend on the model type.

  Returns:
    The options `window` and `window_layers`.
  """
  if model_type == 'llama':
    fields.expect('layer_types', [_FULL] * depth)
    return {}
  window = fields.take('sliding_window', 4096, kind=int, null=True)
  if model_type == 'mistral':
    fields.expect('layer_types', [_SLIDING if window else _FULL] * depth)
    return dict(window=window)
  if not fields.take('use_sliding_window', False, kind=bool):
    window = None
  first = fields.take('max_window_layers', 28)
  types = fields.take('layer_types', None, kind=list)
  if types is None:
    types = [_SLIDING if window and i >= first else _FULL for i in range(depth)]
  if len(types) != depth or set(types) - {_FULL, _SLIDING} or (
      window is None and _SLIDING in types):
    raise checks.DataError(
        f'{fields.title("layer_types")} must be {_FULL} or {_SLIDING} for each '
        f'of {depth} layers, and {_FULL} for all without a window; got '
        f'{types}, which haikd does not support.')
  chosen = tuple(i for i, name in enumerate(types) if name == _SLIDING)
  if not chosen:
    return {}
  return dict(
      window=window, window_layers=None if len(chosen) == depth else chosen)


def _model_type(options):
  """Returns the model type that has these options."""
  has_window = set(_has_window(options))
  biases = options['qkv_bias'], options['output_bias']
  if options['qk_norm']:
    model_type = 'qwen3'
    fits = biases[0] == biases[1] and not options['mlp_bias']
  elif biases == (True, False):
    model_type, fits = 'qwen2', not options['mlp_bias']
  elif True in has_window or options['width'] % options['heads']:
    # Llama has no window, and transformers wants its width to be a multiple of
    # the heads.
    model_type = 'mistral'
    fits = biases == (False, False) and len(has_window) == 1 and (
        not options['mlp_bias'])
  else:
    model_type, fits = 'llama', biases[0] == biases[1]
  if not fits:
    names = ('qk_norm', 'qkv_bias', 'output_bias', 'mlp_bias', 'window',
             'window_layers', 'width', 'heads')
    values = ', '.join(f'{name}={options[name]!r}' for name in names)
    raise checks.ConfigError(
        f'options must be those of one of {", ".join(MODEL_TYPES)}; got '
        f'{values}. qwen3 has norms of queries and keys, and all biases of '
        'attention or none. qwen2 has biases of query, key and value. mistral '
        'has no biases, and one window for all blocks. llama has no window.')
  return model_type


def _has_window(options):
  """Returns whether each block has a window."""
  layers = options['window_layers']
  return [options['window'] is not None and (layers is None or i in layers)
          for i in range(options['depth'])]
