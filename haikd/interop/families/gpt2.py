"""GPT-2 and DistilGPT-2."""

from collections.abc import Iterable, Mapping
from typing import Any

from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop import rules as rules_lib

MODEL = 'gpt2'
MODEL_TYPES = ('gpt2',)
LENGTH = None

_ARCHITECTURES = ('GPT2LMHeadModel', 'GPT2Model')
_TOKENS = 'wte.weight'

# Fields that change no output in inference mode. The model computes attention
# in float32 anyway, and `n_ctx` repeats `n_positions`.
_IGNORED_FIELDS = (
    '_num_labels', 'attn_pdrop', 'embd_pdrop', 'n_ctx',
    'predict_special_tokens', 'reorder_and_upcast_attn', 'resid_pdrop',
    'summary_activation', 'summary_first_dropout', 'summary_proj_to_labels',
    'summary_type', 'summary_use_proj')


def read_config(fields: fields_lib.Fields) -> dict[str, Any]:
  """Returns the options of `models.gpt2` that a config gives.

  Args:
    fields: of `config.json`.

  Returns:
    Options.

  Raises:
    DataError: a field or an architecture that is not supported.
  """
  options_lib.read_architecture(fields, _ARCHITECTURES)
  fields.expect('scale_attn_weights', True)
  fields.expect('scale_attn_by_inverse_layer_idx', False)
  fields.expect('add_cross_attention', False)
  options = dict(
      num_classes=fields.take('vocab_size', kind=int),
      positions=fields.take('n_positions', kind=int),
      width=fields.take('n_embd', kind=int),
      depth=fields.take('n_layer', kind=int,
                        at_most=fields_lib.MOST_LAYERS),
      heads=fields.take('n_head', kind=int),
      hidden=fields.take('n_inner', None, kind=int),
      activation=options_lib.read_activation(fields, 'activation_function'),
      epsilon=fields.take('layer_norm_epsilon', 1e-5, kind=float),
      tied=fields.take('tie_word_embeddings', True, kind=bool))
  fields.ignore(_IGNORED_FIELDS)
  fields.done()
  return options


def tensors(options: Mapping[str, Any],
            names: Iterable[str]) -> rules_lib.Tensors:
  """Returns where each parameter is found.

  Args:
    options: of `models.gpt2`.
    names: of the tensors in the file; empty for the names of a new file.

  Returns:
    The rules of all parameters.
  """
  options = options_lib.complete(MODEL, options)
  # A network without logits is saved without the prefix.
  prefix = '' if _TOKENS in names else 'transformer.'
  layer = prefix + 'h.{layer}.'
  rules = [
      rules_lib.Rule('embed', 'embeddings', prefix + _TOKENS, vocabulary=0),
      rules_lib.Rule('embed', 'positions', f'{prefix}wpe.weight')
  ]
  for i, name in enumerate(('query', 'key', 'value')):
    rules.extend(_linear(f'block/attn/{name}', f'{layer}attn.c_attn', i))
  for module, tensor in (('attn/output', 'attn.c_proj'), ('mlp/up', 'mlp.c_fc'),
                         ('mlp/down', 'mlp.c_proj')):
    rules.extend(_linear(f'block/{module}', layer + tensor))
  for module, tensor in (('norm_attn', 'ln_1'), ('norm_mlp', 'ln_2')):
    rules.extend(rules_lib.norm(f'block/{module}', layer + tensor))
  rules.extend(rules_lib.norm('norm', f'{prefix}ln_f'))
  # Older files hold the causal mask as a buffer.
  return rules_lib.decoder(rules, tied=options['tied'],
                           ignored=('*.attn.bias', '*.attn.masked_bias'))


def write_config(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a config that mean the same as options.

  Args:
    options: of `models.gpt2`.

  Returns:
    The fields of `config.json`, with the size of the vocabulary if the options
    have `num_classes`.

  Raises:
    ConfigError: an activation that transformers does not have.
  """
  options = options_lib.complete(MODEL, options)
  dropout = options['dropout']
  values = dict(
      architectures=[_ARCHITECTURES[0]],
      model_type=MODEL,
      n_positions=options['positions'],
      n_ctx=options['positions'],  # llama.cpp reads it.
      n_embd=options['width'],
      n_layer=options['depth'],
      n_head=options['heads'],
      n_inner=options['hidden'],
      activation_function=options_lib.write_activation(options['activation']),
      layer_norm_epsilon=options['epsilon'],
      embd_pdrop=dropout,
      resid_pdrop=dropout,
      attn_pdrop=0.0,
      tie_word_embeddings=options['tied'])
  if 'num_classes' in options:
    values['vocab_size'] = options['num_classes']
  return values


def _linear(module, tensor, part=None):
  """Returns the rules of a linear map that is stored as `[in, out]`.

  Args:
    module: the Haiku module.
    tensor: the common name of its tensors.
    part: which third of the tensors it is; None for all of them.
  """
  return [
      rules_lib.Rule(
          module, name, f'{tensor}.{suffix}',
          part=None if part is None else rules_lib.TensorPart(axis, part, 3))
      for name, suffix, axis in (('w', 'weight', 1), ('b', 'bias', 0))
  ]
