"""Llama, and the decoders that vary it; see `llama_types.TYPES`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop import rope
from haikd.interop import rules as rules_lib
from haikd.interop.families import llama_choice
from haikd.interop.families import llama_types
from haikd.interop.families import windows

MODEL = 'llama'
MODEL_TYPES = tuple(llama_types.TYPES)
LENGTH = 'max_position_embeddings'

_TOKENS = 'embed_tokens.weight'
_FUSED = 'self_attn.qkv_proj'

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
# The norms of a block, by the option `norms`.
_NORMS = dict(
    before=(('norm_attn', 'input_layernorm'),
            ('norm_mlp', 'post_attention_layernorm')),
    after=(('norm_attn_output', 'post_attention_layernorm'),
           ('norm_mlp_output', 'post_feedforward_layernorm')),
    both=(('norm_attn', 'input_layernorm'),
          ('norm_attn_output', 'post_attention_layernorm'),
          ('norm_mlp', 'pre_feedforward_layernorm'),
          ('norm_mlp_output', 'post_feedforward_layernorm')))
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
  model_type = llama_types.TYPES[fields.take('model_type')]
  options_lib.read_architecture(fields, model_type.classes)
  width = fields.take('hidden_size', kind=int)
  heads = fields.take('num_attention_heads', kind=int)
  head_size = fields.take('head_dim', model_type.head_size, kind=int, null=True)
  if model_type.needs_groups:
    key_value_heads = fields.take('num_key_value_heads', kind=int)
  else:
    key_value_heads = fields.take('num_key_value_heads', None, kind=int)
  depth = fields.take('num_hidden_layers', kind=int,
                      at_most=fields_lib.MOST_LAYERS)
  experts = model_type.experts
  options = dict(
      num_classes=fields.take('vocab_size', kind=int),
      width=width,
      depth=depth,
      heads=heads,
      key_value_heads=key_value_heads or heads,
      head_size=head_size or width // heads,
      hidden=fields.take(
          experts.hidden if experts else 'intermediate_size', kind=int),
      activation=options_lib.read_activation(fields, model_type.activation),
      epsilon=fields.take('rms_norm_eps', model_type.epsilon, kind=float),
      tied=fields.take('tie_word_embeddings', model_type.tied, kind=bool),
      qk_norm=None, qkv_bias=False, output_bias=False, mlp_bias=False)
  if experts:
    options.update(_read_experts(fields, experts))
  for field, switched in model_type.biases.items():
    is_biased = fields.take(field, False, kind=bool)
    options.update({name: is_biased for name in switched})
  for name, number in model_type.numbers.items():
    value = fields.take(
        number.field, number.default, kind=float, null=number.null)
    options[name] = None if value is None else number.read(value)
  options.update(model_type.traits)
  if model_type.has_unrotated:
    options['unrotated_layers'] = _read_unrotated(fields, depth)
  options.update(windows.read(
      fields, model_type.window, depth, options.get('unrotated_layers', ())))
  options.update(rope.read(fields, model_type.rotation))
  if 'window' not in options:
    options.pop('window_rope_base', None)
  for name in model_type.off:
    fields.expect(name, False)
  fields.ignore(('attention_dropout', *model_type.ignored))
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
  names = tuple(names)
  model_type = _named_as(options, names)
  options = options_lib.complete(MODEL, options)
  # A network without logits is saved without the prefix.
  prefix = '' if _TOKENS in names else 'model.'
  layer = prefix + 'layers.{layer}.'
  parts = _fused_parts(options) if model_type.is_fused else {}
  rules = [
      rules_lib.Rule('embed', 'embeddings', prefix + _TOKENS, vocabulary=0)
  ]
  has_experts = options['experts'] is not None
  if has_experts and model_type.experts:
    rules.extend(_expert_rules(options, model_type.experts, layer))
  for module, tensor, bias in _LINEAR:
    if has_experts and module.startswith('mlp'):
      continue
    tensor, part = parts.get(module, (tensor, None))
    rules.extend(rules_lib.linear(
        f'block/{module}', layer + tensor, bias=options[bias], part=part))
  norms = _NORMS[options['norms']] + (_QK_NORMS if options['qk_norm'] else ())
  for module, tensor in norms:
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
  name = llama_choice.choose(options)
  model_type = llama_types.TYPES[name]
  options = options_lib.complete(MODEL, options)
  width, heads = options['width'], options['heads']
  head_size = options['head_size'] or width // heads
  if options['attention_scale'] is None:
    options['attention_scale'] = head_size**-0.5
  values = dict(
      architectures=[model_type.classes[0]],
      model_type=name,
      hidden_size=width,
      num_hidden_layers=options['depth'],
      num_attention_heads=heads,
      num_key_value_heads=options['key_value_heads'] or heads,
      head_dim=head_size,
      rms_norm_eps=options['epsilon'],
      tie_word_embeddings=options['tied'],
      **rope.write(options, model_type.rotation),
      **windows.write(model_type.window, options))
  experts = model_type.experts
  values[experts.hidden if experts else 'intermediate_size'] = (
      options['hidden'] or -(-8 * width // (3 * 64)) * 64)
  if experts:
    values[experts.number] = options['experts']
    values['num_experts_per_tok'] = options['experts_per_token']
    if experts.normalise:
      values[experts.normalise] = options['normalise_experts']
  values[model_type.activation] = options_lib.write_activation(
      options['activation'])
  if 'num_classes' in options:
    values['vocab_size'] = options['num_classes']
  for field, (option, *_) in model_type.biases.items():
    values[field] = options[option]
  for option, number in model_type.numbers.items():
    value = options[option]
    values[number.field] = None if value is None else number.write(value)
  if model_type.has_unrotated:
    values['no_rope_layers'] = [
        int(i not in options['unrotated_layers'])
        for i in range(options['depth'])]
  return values


def _read_unrotated(fields, depth) -> tuple[int, ...]:
  """Takes the fields that say which blocks have no rotations."""
  every = fields.take('no_rope_layer_interval', 4, kind=int)
  rotated = fields.take('no_rope_layers', None, kind=list)
  if rotated is None:
    rotated = [(i + 1) % every for i in range(depth)]
  return tuple(i for i in range(depth) if not rotated[i])


def _read_experts(fields, experts) -> dict[str, Any]:
  """Takes the fields of a mixture of experts."""
  # All blocks have experts.
  fields.expect('decoder_sparse_step', 1)
  fields.expect('mlp_only_layers', [])
  return dict(
      # transformers writes the one name for any type since 5.0.
      experts=fields.take('num_local_experts', None, kind=int) or fields.take(
          experts.number, kind=int),
      experts_per_token=fields.take('num_experts_per_tok', kind=int),
      normalise_experts=experts.normalise is None or fields.take(
          experts.normalise, False, kind=bool))


def _named_as(options, names) -> llama_types.ModelType:
  """Returns a model type whose tensors have the names that there are."""
  if not names:
    return llama_types.TYPES[llama_choice.choose(options)]
  for model_type in llama_types.TYPES.values():
    part = _FUSED if model_type.is_fused else model_type.experts and (
        f'.{model_type.experts.mlp}.experts.')
    if part and any(part in name for name in names):
      return model_type
  return llama_types.TYPES[MODEL]


def _expert_rules(options, experts, layer) -> Iterator[rules_lib.Rule]:
  """Yields the rules of a router and its experts."""
  mlp = layer + experts.mlp
  yield from rules_lib.linear('block/mlp/router', f'{mlp}.gate', bias=False)
  for i in range(options['experts']):
    for module, tensor in zip(('gate', 'up', 'down'), experts.tensors):
      yield from rules_lib.linear(
          f'block/mlp/expert_{i}/{module}', f'{mlp}.experts.{i}.{tensor}',
          bias=options['mlp_bias'])


def _fused_parts(
    options: Mapping[str, Any]) -> dict[str, tuple[str, rules_lib.TensorPart]]:
  """Returns the tensor, and the part of it, of each linear map in a tensor."""
  heads = options['heads']
  groups = options['key_value_heads'] or heads
  part = rules_lib.TensorPart
  all_heads = heads + 2 * groups
  gate_up = 'mlp.gate_up_proj'
  return {
      'attn/query': (_FUSED, part(0, 0, all_heads, heads)),
      'attn/key': (_FUSED, part(0, heads, all_heads, groups)),
      'attn/value': (_FUSED, part(0, heads + groups, all_heads, groups)),
      'mlp/gate': (gate_up, part(0, 0, 2)),
      'mlp/up': (gate_up, part(0, 1, 2)),
  }
