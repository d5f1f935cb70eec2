"""ViT and DeiT, as classifiers of images."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop import rules as rules_lib

MODEL = 'vit'
MODEL_TYPES = ('vit', 'deit')
LENGTH = None

# {architecture: the options that distinguish it}
_ARCHITECTURES = dict(
    ViTForImageClassification=dict(distilled=False, distillation_head=False),
    DeiTForImageClassification=dict(distilled=True, distillation_head=False),
    DeiTForImageClassificationWithTeacher=dict(
        distilled=True, distillation_head=True))

_LINEARS = {
    'attn/query': 'attention.attention.query',
    'attn/key': 'attention.attention.key',
    'attn/value': 'attention.attention.value',
    'attn/output': 'attention.output.dense',
    'mlp/up': 'intermediate.dense',
    'mlp/down': 'output.dense',
}
_NORMS = dict(norm_attn='layernorm_before', norm_mlp='layernorm_after')

_PATCHES = 'embeddings.patch_embeddings.projection.weight'


def read_config(fields: fields_lib.Fields) -> dict[str, Any]:
  """Returns the options of `models.vit` that a config gives.

  How images are normalised is in another file; see `images.read_scale`.

  Args:
    fields: of `config.json`.

  Returns:
    Options.

  Raises:
    DataError: a field or an architecture that is not supported.
  """
  width = fields.take('hidden_size', kind=int)
  options = dict(
      num_classes=options_lib.read_labels(fields),
      image_size=fields.take('image_size', kind=int),
      channels=fields.take('num_channels', 3, kind=int),
      patch_size=fields.take('patch_size', kind=int),
      width=width,
      depth=fields.take('num_hidden_layers', kind=int,
                        at_most=fields_lib.MOST_LAYERS),
      heads=fields.take('num_attention_heads', kind=int),
      mlp_ratio=fields.take('intermediate_size', kind=int) / width,
      activation=options_lib.read_activation(fields, 'hidden_act'),
      epsilon=fields.take('layer_norm_eps', 1e-12, kind=float),
      qkv_bias=fields.take('qkv_bias', True, kind=bool),
      **_read_architecture(fields))
  # Fields of dropout, the pooler and masked images, which no logit depends on.
  fields.ignore(('attention_probs_dropout_prob', 'encoder_stride',
                 'hidden_dropout_prob', 'pooler_act', 'pooler_output_size'))
  fields.done()
  return options


def tensors(options: Mapping[str, Any],
            names: Iterable[str]) -> rules_lib.Tensors:
  """Returns where each parameter is found.

  Args:
    options: of `models.vit`.
    names: of the tensors in the file; empty for the names of a new file.

  Returns:
    The rules of all parameters.
  """
  options = options_lib.complete(MODEL, options)
  is_distilled = options['distilled']
  prefix = 'deit.' if is_distilled else 'vit.'
  for name in names:
    if name.endswith(_PATCHES):
      prefix = name.removesuffix(_PATCHES)
  embeddings = f'{prefix}embeddings'
  rule, linear = rules_lib.Rule, rules_lib.linear
  rules = [
      rule('embed/patches', 'w', prefix + _PATCHES,
           _patches(options['patch_size'])),
      rule('embed/patches', 'b',
           f'{embeddings}.patch_embeddings.projection.bias'),
      rule('embed', 'token', f'{embeddings}.cls_token'),
      rule('embed', 'positions', f'{embeddings}.position_embeddings',
           rules_lib.Layout(lambda x: x[0], lambda x: x[None])),
      *rules_lib.norm('norm', f'{prefix}layernorm'),
  ]
  for module, tensor in _LINEARS.items():
    tensor = f'{prefix}encoder.layer.{{layer}}.{tensor}'
    is_biased = options['qkv_bias'] or 'attention.attention' not in tensor
    rules.extend(linear(f'block/{module}', tensor, bias=is_biased))
  for module, tensor in _NORMS.items():
    tensor = f'{prefix}encoder.layer.{{layer}}.{tensor}'
    rules.extend(rules_lib.norm(f'block/{module}', tensor))
  if is_distilled:
    rules.append(rule('embed', 'distillation_token',
                      f'{embeddings}.distillation_token'))
  if options['distillation_head']:
    rules.extend(linear('logits', 'cls_classifier'))
    rules.extend(linear('distillation_logits', 'distillation_classifier'))
  else:
    rules.extend(linear('logits', 'classifier'))
  ignored = (f'{prefix}pooler.*', f'{embeddings}.mask_token')
  return rules_lib.Tensors(tuple(rules), ignored)


def write_config(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a config that mean the same as options.

  Args:
    options: of `models.vit`, with `num_classes`, `image_size` and `channels`.

  Returns:
    The fields of `config.json`.

  Raises:
    ConfigError: one of these three is missing, or neither network has all of
      the options together.
  """
  options = options_lib.complete(MODEL, options)
  for name in ('num_classes', 'image_size', 'channels'):
    if not options.get(name):
      raise checks.ConfigError(
          f'options.{name} must be given for a vit; got {options.get(name)}. '
          'Set it in the config.')
  options_lib.check_choice('pool', options['pool'], ('token',))
  width = options['width']
  architecture = next(
      name for name, required in _ARCHITECTURES.items()
      if all(options[key] == value for key, value in required.items()))
  return dict(
      architectures=[architecture],
      model_type='deit' if options['distilled'] else 'vit',
      hidden_size=width,
      num_hidden_layers=options['depth'],
      num_attention_heads=options['heads'],
      intermediate_size=round(options['mlp_ratio'] * width),
      hidden_act=options_lib.write_activation(options['activation']),
      hidden_dropout_prob=options['dropout'],
      attention_probs_dropout_prob=0.0,
      layer_norm_eps=options['epsilon'],
      image_size=options['image_size'],
      patch_size=options['patch_size'],
      num_channels=options['channels'],
      qkv_bias=options['qkv_bias'],
      **options_lib.write_labels(options['num_classes']))


def _read_architecture(fields):
  model_type = fields.take('model_type')
  architectures = fields.take('architectures', None, kind=list) or ['none']
  known = {name: options for name, options in _ARCHITECTURES.items()
           if options['distilled'] == (model_type == 'deit')}
  if len(architectures) != 1 or architectures[0] not in known:
    raise checks.DataError(
        f'{fields.title("architectures")} must be one of {", ".join(known)}; '
        f'got {", ".join(architectures)}, which has no logits that haikd '
        'supports. Choose a network that was trained to classify.')
  return known[architectures[0]]


def _patches(size: int) -> rules_lib.Layout:
  """Returns the layout of patches: a convolution as a linear map.

  The kernel `[D, C, p, p]` of the convolution is the matrix `[p p C, D]` that
  maps flattened patches.

  Args:
    size: p, the side of a patch.
  """

  def load(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

  def store(x: np.ndarray) -> np.ndarray:
    return x.reshape(size, size, -1, x.shape[1]).transpose(3, 2, 0, 1)

  return rules_lib.Layout(load, store)
