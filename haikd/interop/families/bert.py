"""BERT, RoBERTa and DistilBERT, with their heads."""

from collections.abc import Iterable, Mapping
from typing import Any

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop import rules as rules_lib

MODEL = 'bert'
MODEL_TYPES = ('bert', 'roberta', 'distilbert')
LENGTH = None

_CLASSES = dict(bert='Bert', roberta='Roberta', distilbert='DistilBert')
_ENDINGS = dict(
    embedding='Model',
    classification='ForSequenceClassification',
    masked_lm='ForMaskedLM')
_POOLERS = dict(bert='tanh', roberta='tanh', distilbert='relu')
_TOKENS = 'embeddings.word_embeddings.weight'

# Fields that change no output in inference mode.
_IGNORED_FIELDS = (
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

# {model type: its tensors of heads}. For classes the pooler, with {} for the
# prefix, and the logits; for tokens the transform, its norm and the bias of the
# logits.
_HEADS = dict(
    bert=('{}pooler.dense', 'classifier', 'cls.predictions.transform.dense',
          'cls.predictions.transform.LayerNorm', 'cls.predictions.bias'),
    roberta=('classifier.dense', 'classifier.out_proj', 'lm_head.dense',
             'lm_head.layer_norm', 'lm_head.bias'),
    distilbert=('pre_classifier', 'classifier', 'vocab_transform',
                'vocab_layer_norm', 'vocab_projector.bias'))

# The bias of the logits again, and the embedding table, by head.
_BIASES = {
    'cls.predictions.bias': 'cls.predictions.decoder.bias',
    'lm_head.bias': 'lm_head.decoder.bias',
}
_TABLES = dict(
    bert='cls.predictions.decoder.weight', roberta='lm_head.decoder.weight',
    distilbert='vocab_projector.weight')

# Buffers, and heads that are not read.
_IGNORED_TENSORS = (
    '*embeddings.position_ids', '*embeddings.token_type_ids',
    '*pooler.dense.*', 'classifier.*', 'pre_classifier.*', 'cls.*', 'lm_head.*',
    'vocab_transform.*', 'vocab_layer_norm.*', 'vocab_projector.*',
    'qa_outputs.*')


def read_config(fields: fields_lib.Fields) -> dict[str, Any]:
  """Returns the options of `models.bert` that a config gives.

  How an embedding is pooled is read elsewhere, by `pooling.read_pooling`.

  Args:
    fields: of `config.json`.

  Returns:
    Options.

  Raises:
    DataError: a field or an architecture that is not supported.
  """
  model_type = fields.take('model_type')
  head = _read_head(fields, model_type)
  # transformers can also run these models as decoders, with other attention.
  fields.expect('is_decoder', False)
  fields.expect('add_cross_attention', False)
  fields.expect('position_embedding_type', 'absolute')
  if head == 'masked_lm':
    fields.expect('tie_word_embeddings', True)
  fields.ignore(('tie_word_embeddings', *_IGNORED_FIELDS))
  options = dict(
      vocabulary=fields.take('vocab_size', kind=int),
      positions=fields.take('max_position_embeddings', kind=int),
      head=head)
  if model_type == 'distilbert':
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
  if model_type == 'roberta':
    options['position_offset'] = _read_offset(fields)
    if head == 'masked_lm':  # Its transform uses gelu, whatever the field says.
      fields.expect('hidden_act', 'gelu')
  if head == 'classification':
    options.update(
        num_classes=options_lib.read_labels(fields),
        pooler_activation=_POOLERS[model_type])
  fields.done()
  return options


def tensors(options: Mapping[str, Any],
            names: Iterable[str]) -> rules_lib.Tensors:
  """Returns where each parameter is found.

  Args:
    options: of `models.bert`.
    names: of the tensors in the file; empty for the names of a new file.

  Returns:
    The rules of all parameters.
  """
  options = options_lib.complete(MODEL, options)
  names = tuple(names)
  head, model_type = options['head'], _model_type(options, names)
  prefix = _prefix(names, '' if head == 'embedding' else f'{model_type}.')
  # Old files call the scale gamma and the offset beta.
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
  is_distilbert = model_type == 'distilbert'
  stack = prefix + ('transformer' if is_distilbert else 'encoder')
  block = _DISTILBERT_BLOCK if is_distilbert else _BERT_BLOCK
  for name, tensor in block.items():
    tensor = f'{stack}.layer.{{layer}}.{tensor}'
    if name.startswith('norm'):
      rules.extend(norm(f'block/{name}', tensor))
    else:
      room = 'mlp' if name in ('up', 'down') else 'attn'
      rules.extend(rules_lib.linear(f'block/{room}/{name}', tensor))
  pooler, logits, transform, transform_norm, bias = _HEADS[model_type]
  if head == 'classification':
    if options['pooler_activation'] is not None:
      rules.extend(rules_lib.linear('pooler', pooler.format(prefix)))
    rules.extend(rules_lib.linear('logits', logits))
  copies = {}
  if head == 'masked_lm':
    rules.extend(rules_lib.linear('transform', transform))
    rules.extend(norm('transform_norm', transform_norm))
    rules.append(rules_lib.Rule('logits', 'b', bias, vocabulary=0))
    copies = {_TABLES[model_type]: prefix + _TOKENS}
    if bias in _BIASES:
      copies[_BIASES[bias]] = bias
  return rules_lib.Tensors(tuple(rules), _IGNORED_TENSORS, copies)


def write_config(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a config that mean the same as options.

  A network without token types is a DistilBERT, one with an offset of
  positions a RoBERTa, any other a BERT.

  Args:
    options: of `models.bert`, with `num_classes` for classification.

  Returns:
    The fields of `config.json`.

  Raises:
    ConfigError: none of the three has all of these options together.
  """
  options = options_lib.complete(MODEL, options)
  model_type, head = _model_type(options, ()), options['head']
  _check_writable(options, model_type)
  activation = options_lib.write_activation(options['activation'])
  hidden = options['hidden'] or 4 * options['width']
  dropout = options['dropout']
  values = dict(
      architectures=[_CLASSES[model_type] + _ENDINGS[head]],
      model_type=model_type,
      vocab_size=options['vocabulary'],
      max_position_embeddings=options['positions'])
  if model_type == 'distilbert':
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
  if model_type == 'roberta':
    values['pad_token_id'] = options['position_offset'] - 1
  if head == 'classification':
    values.update(options_lib.write_labels(options['num_classes']))
  return values


def _read_head(fields, model_type):
  prefix = _CLASSES[model_type]
  known = {prefix + ending: head for head, ending in _ENDINGS.items()}
  # It has a second head, for pairs of sentences, which is not read.
  known['BertForPreTraining'] = 'masked_lm'
  return known[options_lib.read_architecture(fields, known)]


def _read_offset(fields):
  padding = fields.take('pad_token_id', 1)
  if not isinstance(padding, int) or isinstance(padding, bool):
    raise checks.DataError(
        f'{fields.title("pad_token_id")} must be a whole number, since '
        f'positions are counted from it; got {padding!r}. Fetch the model '
        'again.')
  return padding + 1


def _model_type(options, names):
  """Returns the model type, by the names of tensors if there are any."""
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


def _check_writable(options, model_type):
  check = options_lib.check_choice
  if model_type == 'distilbert':
    check('position_offset', options['position_offset'], (0,))
    check('epsilon', options['epsilon'], (1e-12,))
  if options['head'] == 'classification':
    check('pooler_activation', options['pooler_activation'],
          (_POOLERS[model_type],))
    if not options['num_classes']:
      raise checks.ConfigError(
          "options.num_classes must be given for head='classification'; got "
          f'{options["num_classes"]!r}. Set it in the config.')
  if options['head'] == 'masked_lm' and model_type == 'roberta':
    check('activation', options['activation'], ('gelu',))
