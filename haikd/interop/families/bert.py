"""BERT, RoBERTa and DistilBERT, with each of their heads."""

from collections.abc import Iterable, Mapping
from typing import Any

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop import rules as rules_lib

MODEL = 'bert'
MODEL_TYPES = ('bert', 'roberta', 'distilbert')
LENGTH = None

_WHERE = 'interop.write_config'
_CLASSES = dict(bert='Bert', roberta='Roberta', distilbert='DistilBert')
_ENDINGS = dict(
    embedding='Model',
    classification='ForSequenceClassification',
    masked_lm='ForMaskedLM')
_POOLERS = dict(bert='tanh', roberta='tanh', distilbert='relu')
_TOKENS = 'embeddings.word_embeddings.weight'

# What stands in one of their configs and changes no output at rest.
_AT_REST = (
    'attention_dropout', 'attention_probs_dropout_prob', 'classifier_dropout',
    'directionality', 'dropout', 'hidden_dropout_prob', 'pooler_fc_size',
    'pooler_num_attention_heads', 'pooler_num_fc_layers',
    'pooler_size_per_head', 'pooler_type', 'qa_dropout', 'seq_classif_dropout',
    'sinusoidal_pos_embds', 'tie_weights_')

_BERT_BLOCK = dict(
    query='attention.self.query',
    key='attention.self.key',
    value='attention.self.value',
    output='attention.output.dense',
    norm_attn='attention.output.LayerNorm',
    up='intermediate.dense',
    down='output.dense',
    norm_mlp='output.LayerNorm')
_DISTILBERT_BLOCK = dict(
    query='attention.q_lin',
    key='attention.k_lin',
    value='attention.v_lin',
    output='attention.out_lin',
    norm_attn='sa_layer_norm',
    up='ffn.lin1',
    down='ffn.lin2',
    norm_mlp='output_layer_norm')

# Of each kind: the pooler ({} is the prefix) and the logits of classes; the
# transform, its norm and the bias of the logits of tokens.
_HEADS = dict(
    bert=('{}pooler.dense', 'classifier', 'cls.predictions.transform.dense',
          'cls.predictions.transform.LayerNorm', 'cls.predictions.bias'),
    roberta=('classifier.dense', 'classifier.out_proj', 'lm_head.dense',
             'lm_head.layer_norm', 'lm_head.bias'),
    distilbert=('pre_classifier', 'classifier', 'vocab_transform',
                'vocab_layer_norm', 'vocab_projector.bias'))

# Buffers, heads that are not read, and the table again, where it unembeds.
_IGNORED = ('*embeddings.position_ids', '*embeddings.token_type_ids',
            '*pooler.dense.*', 'classifier.*', 'pre_classifier.*', 'cls.*',
            'lm_head.*', 'vocab_transform.*', 'vocab_layer_norm.*',
            'vocab_projector.*', 'qa_outputs.*')


def read_config(fields: fields_lib.Fields) -> dict[str, Any]:
  """Returns the options of `models.bert` that a config says.

  How an embedding is pooled is not among them; see `pooling.read_pooling`.

  Args:
    fields: of `config.json`.

  Returns:
    Options.

  Raises:
    DataError: a field or an architecture that is not supported.
  """
  kind = fields.take('model_type')
  head = _read_head(fields, kind)
  # Their text models can be made decoders, of another attention.
  fields.expect('is_decoder', False)
  fields.expect('add_cross_attention', False)
  fields.expect('position_embedding_type', 'absolute')
  if head == 'masked_lm':
    fields.expect('tie_word_embeddings', True)
  fields.ignore(('tie_word_embeddings', *_AT_REST))
  options = dict(
      vocabulary=fields.take('vocab_size', kind=int),
      positions=fields.take('max_position_embeddings', kind=int),
      head=head)
  if kind == 'distilbert':
    options.update(
        types=0,
        width=fields.take('dim', kind=int),
        depth=fields.take('n_layers', kind=int),
        heads=fields.take('n_heads', kind=int),
        hidden=fields.take('hidden_dim', kind=int),
        activation=options_lib.read_activation(fields, 'activation'),
        epsilon=1e-12)
  else:
    options.update(
        types=fields.take('type_vocab_size', kind=int),
        width=fields.take('hidden_size', kind=int),
        depth=fields.take('num_hidden_layers', kind=int),
        heads=fields.take('num_attention_heads', kind=int),
        hidden=fields.take('intermediate_size', kind=int),
        activation=options_lib.read_activation(fields, 'hidden_act'),
        epsilon=fields.take('layer_norm_eps', 1e-12, kind=float))
  if kind == 'roberta':
    options['position_offset'] = _read_offset(fields)
    if head == 'masked_lm':  # Its transform has this one, whatever it says.
      fields.expect('hidden_act', 'gelu')
  if head == 'classification':
    options.update(
        num_classes=options_lib.read_labels(fields),
        pooler_activation=_POOLERS[kind])
  fields.done()
  return options


def tensors(options: Mapping[str, Any],
            names: Iterable[str]) -> rules_lib.Tensors:
  """Returns where each parameter is found.

  Args:
    options: of `models.bert`.
    names: of the tensors there are; none to have those of a new file.

  Returns:
    The rules of all parameters.
  """
  options = options_lib.complete(MODEL, options)
  names = tuple(names)
  head, kind = options['head'], _kind(options, names)
  prefix = _prefix(names, '' if head == 'embedding' else f'{kind}.')
  # So old files call scale and offset.
  is_old = any(name.endswith('LayerNorm.gamma') for name in names)
  norm = _old_norm if is_old else rules_lib.norm
  embeddings = f'{prefix}embeddings'
  rules = [
      rules_lib.Rule('embed', 'embeddings', prefix + _TOKENS, vocabulary=0),
      rules_lib.Rule('embed', 'positions',
                     f'{embeddings}.position_embeddings.weight'),
      *norm('embed/norm', f'{embeddings}.LayerNorm'),
  ]
  if options['types']:
    rules.append(
        rules_lib.Rule('embed', 'types',
                       f'{embeddings}.token_type_embeddings.weight'))
  is_distilbert = kind == 'distilbert'
  stack = prefix + ('transformer' if is_distilbert else 'encoder')
  block = _DISTILBERT_BLOCK if is_distilbert else _BERT_BLOCK
  for name, tensor in block.items():
    tensor = f'{stack}.layer.{{layer}}.{tensor}'
    if name.startswith('norm'):
      rules.extend(norm(f'block/{name}', tensor))
    else:
      room = 'mlp' if name in ('up', 'down') else 'attn'
      rules.extend(rules_lib.linear(f'block/{room}/{name}', tensor))
  pooler, logits, transform, transform_norm, bias = _HEADS[kind]
  if head == 'classification':
    if options['pooler_activation'] is not None:
      rules.extend(rules_lib.linear('pooler', pooler.format(prefix)))
    rules.extend(rules_lib.linear('logits', logits))
  if head == 'masked_lm':
    rules.extend(rules_lib.linear('transform', transform))
    rules.extend(norm('transform_norm', transform_norm))
    rules.append(rules_lib.Rule('logits', 'b', bias, vocabulary=0))
  return rules_lib.Tensors(tuple(rules), _IGNORED)


def write_config(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a config that say the same as options.

  Without token types it is DistilBERT, with an offset of positions RoBERTa,
  else BERT.

  Args:
    options: of `models.bert`; `num_classes` among them for classification.

  Returns:
    The fields of `config.json`.

  Raises:
    ConfigError: options that none of the three has together.
  """
  options = options_lib.complete(MODEL, options)
  kind, head = _kind(options, ()), options['head']
  _check_writable(options, kind)
  activation = options_lib.write_activation(_WHERE, options['activation'])
  hidden = options['hidden'] or 4 * options['width']
  dropout = options['dropout']
  values = dict(
      architectures=[_CLASSES[kind] + _ENDINGS[head]],
      model_type=kind,
      vocab_size=options['vocabulary'],
      max_position_embeddings=options['positions'])
  if kind == 'distilbert':
    values.update(
        dim=options['width'],
        n_layers=options['depth'],
        n_heads=options['heads'],
        hidden_dim=hidden,
        activation=activation,
        dropout=dropout,
        attention_dropout=0.0,
        seq_classif_dropout=dropout)
  else:
    values.update(
        type_vocab_size=options['types'],
        hidden_size=options['width'],
        num_hidden_layers=options['depth'],
        num_attention_heads=options['heads'],
        intermediate_size=hidden,
        hidden_act=activation,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=options['epsilon'])
  if kind == 'roberta':
    values['pad_token_id'] = options['position_offset'] - 1
  if head == 'classification':
    values.update(options_lib.write_labels(options['num_classes']))
  return values


def _read_head(fields, kind):
  known = {_CLASSES[kind] + ending: head for head, ending in _ENDINGS.items()}
  # Trained on pairs of sentences too, whose head is not read.
  known['BertForPreTraining'] = 'masked_lm'
  return known[options_lib.read_architecture(fields, known)]


def _read_offset(fields):
  padding = fields.take('pad_token_id', 1)
  if not isinstance(padding, int):
    raise checks.DataError(
        f'interop.read: pad_token_id of {fields.path} must be a number, as '
        f'positions are counted from it; got pad_token_id={padding!r}.')
  return padding + 1


def _kind(options, names):
  """Returns the model type, of the names of tensors where there are some."""
  if names:
    is_distilbert = any('transformer.layer.' in name for name in names)
  else:
    is_distilbert = not options['types']
  if is_distilbert:
    return 'distilbert'
  return 'roberta' if options['position_offset'] else 'bert'


def _prefix(names, default):
  for name in names:
    if name.endswith(_TOKENS):
      return name.removesuffix(_TOKENS)
  return default


def _old_norm(module, tensor):
  return (rules_lib.Rule(module, 'scale', f'{tensor}.gamma'),
          rules_lib.Rule(module, 'offset', f'{tensor}.beta'))


def _check_writable(options, kind):
  check = options_lib.check_choice
  if kind == 'distilbert':
    check(_WHERE, 'position_offset', options['position_offset'], (0,))
    check(_WHERE, 'epsilon', options['epsilon'], (1e-12,))
  if options['head'] == 'classification':
    check(_WHERE, 'pooler_activation', options['pooler_activation'],
          (_POOLERS[kind],))
    if not options['num_classes']:
      raise checks.ConfigError(
          f'{_WHERE}: num_classes must be among the options for head '
          f"'classification'; got {sorted(options)}.")
  if options['head'] == 'masked_lm' and kind == 'roberta':
    check(_WHERE, 'activation', options['activation'], ('gelu',))
