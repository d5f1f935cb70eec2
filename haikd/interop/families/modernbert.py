"""ModernBERT, with its heads."""

from collections.abc import Iterable, Mapping
from typing import Any

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop import rules as rules_lib
from haikd.interop.families import pooling

MODEL = 'modernbert'
MODEL_TYPES = ('modernbert',)
LENGTH = 'max_position_embeddings'

_ARCHITECTURES = dict(
    ModernBertModel='embedding',
    ModernBertForSequenceClassification='classification',
    ModernBertForMaskedLM='masked_lm')
_TOKENS = 'embeddings.tok_embeddings.weight'
_GLOBAL, _LOCAL = 'full_attention', 'sliding_attention'
_ROPE_BASES = {_GLOBAL: 160000.0, _LOCAL: 10000.0}  # Where a config has none.
_POOLS = dict(cls='token', mean='mean')

# Fields that change no output in inference mode.
_IGNORED_FIELDS = (
    'attention_dropout', 'classifier_dropout', 'deterministic_flash_attn',
    'embedding_dropout', 'initializer_cutoff_factor', 'layer_norm_eps',
    'max_position_embeddings', 'mlp_dropout', 'reference_compile',
    'repad_logits_with_grad', 'sparse_pred_ignore_index', 'sparse_prediction')

# Heads that are not read.
_IGNORED_TENSORS = ('head.*', 'decoder.*', 'classifier.*')


def read_config(fields: fields_lib.Fields) -> dict[str, Any]:
  """Returns the options of `models.modernbert` that a config gives.

  How an embedding is pooled is read elsewhere, by `pooling.read_pooling`.

  Args:
    fields: of `config.json`.

  Returns:
    Options.

  Raises:
    DataError: a field or an architecture that is not supported.
  """
  head = _ARCHITECTURES[
      options_lib.read_architecture(fields, _ARCHITECTURES)]
  fields.expect('position_embedding_type', 'absolute')  # Of older files.
  if head == 'masked_lm':
    fields.expect('tie_word_embeddings', True)
  fields.ignore(('tie_word_embeddings', *_IGNORED_FIELDS))
  depth = fields.take('num_hidden_layers', kind=int,
                      at_most=fields_lib.MOST_LAYERS)
  rope_bases = _read_rope_bases(fields)
  options = dict(
      vocabulary=fields.take('vocab_size', kind=int),
      width=fields.take('hidden_size', kind=int),
      depth=depth,
      heads=fields.take('num_attention_heads', kind=int),
      hidden=fields.take('intermediate_size', kind=int),
      rope_base=rope_bases[_GLOBAL],
      # The field counts keys on both sides, of which each side has half.
      window=fields.take('local_attention', 128, kind=int) // 2 + 1,
      window_layers=_read_window_layers(fields, depth),
      window_rope_base=rope_bases[_LOCAL],
      attention_bias=fields.take('attention_bias', False, kind=bool),
      mlp_bias=fields.take('mlp_bias', False, kind=bool),
      norm_offset=fields.take('norm_bias', False, kind=bool),
      activation=options_lib.read_activation(fields, 'hidden_activation'),
      epsilon=fields.take('norm_eps', 1e-5, kind=float),
      head=head)
  pool = fields.take('classifier_pooling', 'cls', kind=str)
  transform = dict(
      transform_activation=options_lib.read_activation(
          fields, 'classifier_activation'),
      transform_bias=fields.take('classifier_bias', False, kind=bool))
  logits_bias = fields.take('decoder_bias', True, kind=bool)
  if head == 'classification':
    fields.expect('classifier_pooling', *_POOLS)
    options.update(num_classes=options_lib.read_labels(fields),
                   pool=_POOLS[pool], **transform)
  if head == 'masked_lm':
    options.update(logits_bias=logits_bias, **transform)
  fields.done()
  return options


def tensors(options: Mapping[str, Any],
            names: Iterable[str]) -> rules_lib.Tensors:
  """Returns where each parameter is found.

  Args:
    options: of `models.modernbert`.
    names: of the tensors in the file; empty for the names of a new file.

  Returns:
    The rules of all parameters.
  """
  options = options_lib.complete(MODEL, options)
  head, bias = options['head'], options['attention_bias']
  prefix = '' if head == 'embedding' else 'model.'
  for name in names:
    if name.endswith(_TOKENS):
      prefix = name.removesuffix(_TOKENS)
  layer = prefix + 'layers.{layer}.'
  norms = {'embed/norm': f'{prefix}embeddings.norm',
           'norm': f'{prefix}final_norm',
           'block/norm_mlp': f'{layer}mlp_norm'}
  if options['depth'] > 1:  # The first block has none.
    norms['block/norm_attn'] = f'{layer}attn_norm'
  rules = [
      rules_lib.Rule('embed', 'embeddings', prefix + _TOKENS, vocabulary=0),
      *rules_lib.linear(
          'block/attn/output', f'{layer}attn.Wo', bias=bias),
      *rules_lib.linear(
          'block/mlp/down', f'{layer}mlp.Wo', bias=options['mlp_bias'])
  ]
  for i, name in enumerate(('query', 'key', 'value')):
    rules.extend(_part(f'attn/{name}', f'{layer}attn.Wqkv', bias, i, 3))
  for i, name in enumerate(('gate', 'up')):
    rules.extend(
        _part(f'mlp/{name}', f'{layer}mlp.Wi', options['mlp_bias'], i, 2))
  if head != 'embedding':
    norms['transform_norm'] = 'head.norm'
    rules.extend(rules_lib.linear(
        'transform', 'head.dense', bias=options['transform_bias']))
  for module, tensor in norms.items():
    rules.extend(
        rules_lib.norm(module, tensor, offset=options['norm_offset']))
  if head == 'embedding':
    rules.extend(pooling.rules(MODEL, options))
  if head == 'classification':
    rules.extend(rules_lib.linear('logits', 'classifier'))
  if head == 'masked_lm' and options['logits_bias']:
    rules.append(rules_lib.Rule('logits', 'b', 'decoder.bias', vocabulary=0))
  copies = {} if head != 'masked_lm' else {'decoder.weight': prefix + _TOKENS}
  return rules_lib.Tensors(tuple(rules), _IGNORED_TENSORS, copies)


def write_config(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a config that mean the same as options.

  Args:
    options: of `models.modernbert`, with `num_classes` for classification.

  Returns:
    The fields of `config.json`. `layer_types` and `rope_parameters` are those
    of transformers 5; version 4 reads the others, which can only say that every
    n-th block has no window.

  Raises:
    ConfigError: ModernBERT cannot pool like this before its classes, or their
      number is missing.
  """
  options = options_lib.complete(MODEL, options)
  head, depth = options['head'], options['depth']
  heads = {head: name for name, head in _ARCHITECTURES.items()}
  has_window = _has_window(options['window_layers'], depth)
  rope_bases = {_GLOBAL: options['rope_base'],
                _LOCAL: options['window_rope_base']}
  values = dict(
      architectures=[heads[head]],
      model_type=MODEL,
      vocab_size=options['vocabulary'],
      hidden_size=options['width'],
      num_hidden_layers=depth,
      num_attention_heads=options['heads'],
      intermediate_size=options['hidden'],
      local_attention=2 * (options['window'] - 1),
      layer_types=[_LOCAL if local else _GLOBAL for local in has_window],
      rope_parameters={
          kind: dict(rope_type='default', rope_theta=rope_base)
          for kind, rope_base in rope_bases.items()
      },
      global_rope_theta=rope_bases[_GLOBAL],
      local_rope_theta=rope_bases[_LOCAL],
      attention_bias=options['attention_bias'],
      mlp_bias=options['mlp_bias'],
      norm_bias=options['norm_offset'],
      hidden_activation=options_lib.write_activation(options['activation']),
      norm_eps=options['epsilon'],
      classifier_activation=options_lib.write_activation(
          options['transform_activation']),
      classifier_bias=options['transform_bias'],
      decoder_bias=options['logits_bias'],
      embedding_dropout=options['dropout'],
      mlp_dropout=0.0,
      attention_dropout=0.0)
  every = next(n for n in range(1, depth + 1)
               if n == depth or not has_window[n])
  if has_window == [i % every != 0 for i in range(depth)]:
    values['global_attn_every_n_layers'] = every
  if head == 'classification':
    pools = {pool: name for name, pool in _POOLS.items()}
    options_lib.check_choice('pool', options['pool'], pools)
    values['classifier_pooling'] = pools[options['pool']]
    if not options['num_classes']:
      raise checks.ConfigError(
          "options.num_classes must be given for head='classification'; got "
          f'{options["num_classes"]!r}. Set it in the config.')
    values.update(options_lib.write_labels(options['num_classes']))
  return values


def _read_window_layers(fields, depth):
  """Returns the blocks that have a window."""
  every = fields.take('global_attn_every_n_layers', 3, kind=int)
  kinds = fields.take('layer_types', None, kind=list)
  if kinds is None:
    return tuple(i for i in range(depth) if i % every)
  if len(kinds) != depth or not set(kinds) <= {_GLOBAL, _LOCAL}:
    raise checks.DataError(
        f'{fields.title("layer_types")} must give {_GLOBAL} or {_LOCAL} for '
        f'each of {depth} blocks; got {kinds}. Fetch the model again.')
  return tuple(i for i, kind in enumerate(kinds) if kind == _LOCAL)


def _has_window(window_layers, depth):
  """Returns a bool for each block; every third has none by default."""
  if window_layers is None:
    return [i % 3 != 0 for i in range(depth)]
  return [i in set(window_layers) for i in range(depth)]


def _read_rope_bases(fields):
  """Returns the base of the rotations of each kind of block."""
  bases = {
      _GLOBAL: fields.take(
          'global_rope_theta', _ROPE_BASES[_GLOBAL], kind=float),
      _LOCAL: fields.take(
          'local_rope_theta', _ROPE_BASES[_LOCAL], kind=float)
  }
  for kind, values in (
      fields.take('rope_parameters', None, kind=dict) or {}).items():
    inner = fields_lib.Fields(
        fields.path, values or {}, f'rope_parameters.{kind}.')
    inner.expect('rope_type', 'default')
    bases[kind] = inner.take('rope_theta', bases.get(kind), kind=float)
    inner.done()
  return bases


def _part(module, tensor, bias, number, parts):
  """Returns the rules of a linear map that is a part of a larger one."""
  part = rules_lib.TensorPart(0, number, parts)
  return [rule._replace(part=part)
          for rule in rules_lib.linear(f'block/{module}', tensor, bias=bias)]
