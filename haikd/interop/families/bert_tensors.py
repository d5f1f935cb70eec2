"""The tensor names of the BERT family."""

from collections.abc import Iterable, Mapping
from typing import Any

from haikd.interop import options as options_lib
from haikd.interop import rules as rules_lib
from haikd.interop.families import pooling

_TOKENS = 'embeddings.word_embeddings.weight'

_BERT_BLOCK = dict(
    query='attention.self.query',
    key='attention.self.key',
    value='attention.self.value',
    output='attention.output.dense',
    norm_attn='attention.output.LayerNorm',
    up='intermediate.dense',
    down='output.dense',
    norm_mlp='output.LayerNorm')
_MPNET_BLOCK = _BERT_BLOCK | dict(
    query='attention.attn.q',
    key='attention.attn.k',
    value='attention.attn.v',
    output='attention.attn.o',
    norm_attn='attention.LayerNorm')
_DISTILBERT_BLOCK = dict(
    query='attention.q_lin',
    key='attention.k_lin',
    value='attention.v_lin',
    output='attention.out_lin',
    norm_attn='sa_layer_norm',
    up='ffn.lin1',
    down='ffn.lin2',
    norm_mlp='output_layer_norm')

# {model type: the tensors of its blocks}
_BLOCKS = dict(
    bert=_BERT_BLOCK,
    roberta=_BERT_BLOCK,
    distilbert=_DISTILBERT_BLOCK,
    mpnet=_MPNET_BLOCK)

_ROBERTA_HEADS = ('classifier.dense', 'classifier.out_proj', 'lm_head.dense',
                  'lm_head.layer_norm', 'lm_head.bias')

# {model type: its tensors of heads}. For classes the pooler, with {} for the
# prefix, and the logits; for tokens the transform, its norm and the bias of the
# logits.
_HEADS = dict(
    bert=('{}pooler.dense', 'classifier', 'cls.predictions.transform.dense',
          'cls.predictions.transform.LayerNorm', 'cls.predictions.bias'),
    roberta=_ROBERTA_HEADS,
    mpnet=_ROBERTA_HEADS,
    distilbert=('pre_classifier', 'classifier', 'vocab_transform',
                'vocab_layer_norm', 'vocab_projector.bias'))

# The bias of the logits again, and the embedding table, by head.
_BIASES = {
    'cls.predictions.bias': 'cls.predictions.decoder.bias',
    'lm_head.bias': 'lm_head.decoder.bias',
}
_TABLES = dict(
    bert='cls.predictions.decoder.weight', roberta='lm_head.decoder.weight',
    mpnet='lm_head.decoder.weight', distilbert='vocab_projector.weight')

# Buffers, and heads that are not read.
_IGNORED_TENSORS = (
    '*embeddings.position_ids', '*embeddings.token_type_ids',
    '*pooler.dense.*', 'classifier.*', 'pre_classifier.*', 'cls.*', 'lm_head.*',
    'vocab_transform.*', 'vocab_layer_norm.*', 'vocab_projector.*',
    'qa_outputs.*')


def tensors(options: Mapping[str, Any],
            names: Iterable[str]) -> rules_lib.Tensors:
  """Returns where each parameter is found.

  Args:
    options: of `models.bert`.
    names: of the tensors in the file; empty for the names of a new file.

  Returns:
    The rules of all parameters.
  """
  options = options_lib.complete('bert', options)
  names = tuple(names)
  head, kind = options['head'], model_type(options, names)
  prefix = _prefix(names, '' if head == 'embedding' else f'{kind}.')
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
  stack = prefix + ('transformer' if kind == 'distilbert' else 'encoder')
  if options['relative_buckets']:
    rules.append(
        rules_lib.Rule('relative', 'embeddings',
                       f'{stack}.relative_attention_bias.weight'))
  for name, tensor in _BLOCKS[kind].items():
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
  copies = {}
  if head == 'masked_lm':
    rules.extend(rules_lib.linear('transform', transform))
    rules.extend(norm('transform_norm', transform_norm))
    rules.append(rules_lib.Rule('logits', 'b', bias, vocabulary=0))
    copies = {_TABLES[kind]: prefix + _TOKENS}
    if bias in _BIASES:
      copies[_BIASES[bias]] = bias
  if head == 'embedding':
    rules.extend(pooling.rules('bert', options))
  return rules_lib.Tensors(tuple(rules), _IGNORED_TENSORS, copies)


def model_type(options: Mapping[str, Any], names: Iterable[str]) -> str:
  """Returns the model type, by the names of tensors if there are any.

  Args:
    options: of `models.bert`, complete.
    names: of the tensors in the file; empty for the names of a new file.

  Returns:
    'mpnet', 'distilbert', 'roberta', whose names XLM-RoBERTa has too, or
    'bert'.
  """
  if options['relative_buckets']:
    return 'mpnet'
  names = tuple(names)
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
