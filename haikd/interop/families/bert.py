"""BERT, RoBERTa, XLM-RoBERTa, DistilBERT and MPNet, with their heads."""

from collections.abc import Mapping
from typing import Any

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop.families import bert_tensors

MODEL = 'bert'
LENGTH = None

_CLASSES = {
    'bert': 'Bert',
    'roberta': 'Roberta',
    'xlm-roberta': 'XLMRoberta',
    'distilbert': 'DistilBert',
    'mpnet': 'MPNet',
}
MODEL_TYPES = tuple(_CLASSES)
_ENDINGS = dict(
    embedding='Model',
    classification='ForSequenceClassification',
    masked_lm='ForMaskedLM')
_MPNET_OFFSET, _MPNET_BUCKETS = 2, 32  # transformers takes no others.

# Fields that change no output in inference mode.
_IGNORED_FIELDS = (
    'attention_dropout', 'attention_probs_dropout_prob', 'classifier_dropout',
    'directionality', 'dropout', 'hidden_dropout_prob', 'pooler_fc_size',
    'pooler_num_attention_heads', 'pooler_num_fc_layers',
    'pooler_size_per_head', 'pooler_type', 'qa_dropout', 'seq_classif_dropout',
    'sinusoidal_pos_embds', 'tie_weights_')

tensors = bert_tensors.tensors


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
        depth=fields.take('n_layers', kind=int,
                          at_most=fields_lib.MOST_LAYERS),
        heads=fields.take('n_heads', kind=int),
        hidden=fields.take('hidden_dim', kind=int),
        activation=options_lib.read_activation(fields, 'activation'),
        epsilon=1e-12)
  else:
    options.update(
        width=fields.take('hidden_size', kind=int),
        depth=fields.take('num_hidden_layers', kind=int,
                          at_most=fields_lib.MOST_LAYERS),
        heads=fields.take('num_attention_heads', kind=int),
        hidden=fields.take('intermediate_size', kind=int),
        activation=options_lib.read_activation(fields, 'hidden_act'),
        epsilon=fields.take('layer_norm_eps', 1e-12, kind=float))
  if model_type == 'mpnet':
    fields.expect('relative_attention_num_buckets', _MPNET_BUCKETS)
    options.update(
        types=0,
        position_offset=_MPNET_OFFSET,
        relative_buckets=_MPNET_BUCKETS)
  elif model_type != 'distilbert':
    options['types'] = fields.take('type_vocab_size', kind=int)
  if model_type in ('roberta', 'xlm-roberta'):
    options['position_offset'] = _read_offset(fields)
  if head == 'masked_lm' and options.get('position_offset'):
    # Their transform uses gelu, whatever the field says.
    fields.expect('hidden_act', 'gelu')
  if head == 'classification':
    options.update(
        num_classes=options_lib.read_labels(fields),
        pooler_activation=_pooler_activation(model_type))
  fields.done()
  return options


def write_config(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a config that mean the same as options.

  A network with relative positions is an MPNet, another without token types a
  DistilBERT, one with an offset of positions a RoBERTa, any other a BERT.

  Args:
    options: of `models.bert`, with `num_classes` for classification.

  Returns:
    The fields of `config.json`.

  Raises:
    ConfigError: none of these has all of the options together.
  """
  options = options_lib.complete(MODEL, options)
  model_type, head = bert_tensors.model_type(options, ()), options['head']
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
        hidden_size=options['width'],
        num_hidden_layers=options['depth'],
        num_attention_heads=options['heads'],
        intermediate_size=hidden,
        hidden_act=activation,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=options['epsilon'])
  if model_type == 'mpnet':
    values['relative_attention_num_buckets'] = _MPNET_BUCKETS
  elif model_type != 'distilbert':
    values['type_vocab_size'] = options['types']
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


def _pooler_activation(model_type):
  return 'relu' if model_type == 'distilbert' else 'tanh'


def _check_writable(options, model_type):
  check = options_lib.check_choice
  if model_type == 'distilbert':
    check('position_offset', options['position_offset'], (0,))
    check('epsilon', options['epsilon'], (1e-12,))
  if model_type == 'mpnet':
    check('types', options['types'], (0,))
    check('position_offset', options['position_offset'], (_MPNET_OFFSET,))
    check('relative_buckets', options['relative_buckets'], (_MPNET_BUCKETS,))
  if options['head'] == 'classification':
    check('pooler_activation', options['pooler_activation'],
          (_pooler_activation(model_type),))
    if not options['num_classes']:
      raise checks.ConfigError(
          "options.num_classes must be given for head='classification'; got "
          f'{options["num_classes"]!r}. Set it in the config.')
  if options['head'] == 'masked_lm' and options['position_offset']:
    check('activation', options['activation'], ('gelu',))
