"""The encoders of T5 and mT5, which make vectors of texts."""

from collections.abc import Iterable, Mapping
from typing import Any

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop import rules as rules_lib
from haikd.interop.families import pooling

MODEL = 't5_encoder'
LENGTH = None

_CLASSES = dict(t5='T5EncoderModel', mt5='MT5EncoderModel')
MODEL_TYPES = tuple(_CLASSES)

_TOKENS, _TOKENS_COPY = 'shared.weight', 'encoder.embed_tokens.weight'

# {MLP in a config: (whether it is gated, its activation)}. 'gated-gelu' is the
# approximate one.
_MLPS = {
    'relu': (False, 'relu'),
    'gelu': (False, 'gelu'),
    'gelu_new': (False, 'gelu_tanh'),
    'silu': (False, 'silu'),
    'gated-relu': (True, 'relu'),
    'gated-gelu': (True, 'gelu_tanh'),
    'gated-silu': (True, 'silu'),
}

# Fields of the decoder, and those that change no output in inference mode. The
# activation is derived from `feed_forward_proj`.
_IGNORED_FIELDS = (
    'classifier_dropout', 'dense_act_fn', 'dropout_rate', 'initializer_factor',
    'is_encoder_decoder', 'is_gated_act', 'n_positions', 'num_decoder_layers',
    'scale_decoder_outputs', 'tie_word_embeddings')


def read_config(fields: fields_lib.Fields) -> dict[str, Any]:
  """Returns the options of `models.t5_encoder` that a config gives.

  How texts are pooled is read elsewhere, by `pooling.read_pooling`.

  Args:
    fields: of `config.json`.

  Returns:
    Options.

  Raises:
    DataError: a field or an architecture that is not supported.
  """
  options_lib.read_architecture(fields, [_CLASSES[fields.take('model_type')]])
  fields.expect('is_decoder', False)
  fields.ignore(_IGNORED_FIELDS)
  mlp = fields.take('feed_forward_proj', 'relu', kind=str)
  fields.expect('feed_forward_proj', *_MLPS)
  gated, activation = _MLPS[mlp]
  return dict(
      vocabulary=fields.take('vocab_size', kind=int),
      width=fields.take('d_model', kind=int),
      depth=fields.take('num_layers', kind=int,
                        at_most=fields_lib.MOST_LAYERS),
      heads=fields.take('num_heads', kind=int),
      head_size=fields.take('d_kv', kind=int),
      hidden=fields.take('d_ff', kind=int),
      gated=gated,
      activation=activation,
      relative_buckets=fields.take(
          'relative_attention_num_buckets', 32, kind=int),
      max_distance=fields.take(
          'relative_attention_max_distance', 128, kind=int),
      epsilon=fields.take('layer_norm_epsilon', 1e-6, kind=float))


def tensors(options: Mapping[str, Any],
            names: Iterable[str]) -> rules_lib.Tensors:
  """Returns where each parameter is found.

  Args:
    options: of `models.t5_encoder`.
    names: of the tensors in the file; empty for the names of a new file.

  Returns:
    The rules of all parameters.
  """
  options = options_lib.complete(MODEL, options)
  names = tuple(names)
  tokens = _TOKENS if _TOKENS in names or not names else _TOKENS_COPY
  layer = 'encoder.block.{layer}.layer.'
  attention, mlp = f'{layer}0.SelfAttention.', f'{layer}1.DenseReluDense.'
  rules = [
      rules_lib.Rule('embed', 'embeddings', tokens, vocabulary=0),
      rules_lib.Rule(
          'relative', 'embeddings',
          f'{attention}relative_attention_bias.weight'.format(layer=0)),
      *rules_lib.norm('norm', 'encoder.final_layer_norm', offset=False),
      *rules_lib.norm('block/norm_attn', f'{layer}0.layer_norm', offset=False),
      *rules_lib.norm('block/norm_mlp', f'{layer}1.layer_norm', offset=False),
  ]
  maps = {
      'attn/query': f'{attention}q',
      'attn/key': f'{attention}k',
      'attn/value': f'{attention}v',
      'attn/output': f'{attention}o',
      'mlp/down': f'{mlp}wo',
  }
  if options['gated']:
    maps.update({'mlp/gate': f'{mlp}wi_0', 'mlp/up': f'{mlp}wi_1'})
  else:
    maps['mlp/up'] = f'{mlp}wi'
  for module, tensor in maps.items():
    rules.extend(rules_lib.linear(f'block/{module}', tensor, bias=False))
  rules.extend(pooling.rules(MODEL, options))
  copies = {} if tokens == _TOKENS_COPY else {_TOKENS_COPY: _TOKENS}
  return rules_lib.Tensors(tuple(rules), copies=copies)


def write_config(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a config that mean the same as options.

  Args:
    options: of `models.t5_encoder`.

  Returns:
    The fields of `config.json`.

  Raises:
    ConfigError: T5 has no such MLP.
  """
  options = options_lib.complete(MODEL, options)
  names = {mlp: name for name, mlp in _MLPS.items()}
  mlp = options['gated'], options['activation']
  if mlp not in names:
    raise checks.ConfigError(
        'options.gated and options.activation must be one of '
        f'{", ".join(map(str, names))}; got {mlp}, which no network of this '
        'kind has in transformers.')
  return dict(
      architectures=[_CLASSES['t5']],
      model_type='t5',
      vocab_size=options['vocabulary'],
      d_model=options['width'],
      num_layers=options['depth'],
      num_heads=options['heads'],
      d_kv=options['head_size'],
      d_ff=options['hidden'],
      feed_forward_proj=names[mlp],
      relative_attention_num_buckets=options['relative_buckets'],
      relative_attention_max_distance=options['max_distance'],
      layer_norm_epsilon=options['epsilon'],
      dropout_rate=options['dropout'],
      is_encoder_decoder=False)
