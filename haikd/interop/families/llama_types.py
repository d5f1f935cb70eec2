"""The model types of transformers that the model `llama` is read from."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional

from haikd.interop import rope
from haikd.interop.families import windows


class Number(NamedTuple):
  """A field that gives an option of a number.

  Attributes:
    field: its name.
    default: of a config without the field.
    null: whether it may be null, for None.
    read: from the field to the option.
    write: from the option to the field.
  """

  field: str
  default: Optional[float]
  null: bool = False
  read: Callable[[float], float] = lambda value: value
  write: Callable[[float], float] = lambda value: value


class Experts(NamedTuple):
  """The fields and tensors of a mixture of experts.

  Attributes:
    number: the field for their number.
    hidden: the field for the hidden units of one.
    normalise: the field for `normalise_experts`; None if it is always true.
    mlp: the name of the module in a block.
    tensors: the names of gate, up and down in an expert.
  """

  number: str
  hidden: str
  normalise: Optional[str]
  mlp: str
  tensors: tuple[str, str, str]


class ModelType(NamedTuple):
  """What distinguishes the networks and configs of a model type.

  Attributes:
    classes: the class with logits, and the one without.
    traits: options that all of its networks have, if not the model's defaults.
    has_unrotated: whether configs say which blocks have no rotations.
    numbers: `{option: its field}` of further options.
    window: which blocks have windows.
    rotation: how RoPE is described.
    biases: `{field: the options that it switches on}`.
    head_size: of a config without the field; None for width / heads.
    needs_groups: whether a config must say the number of key heads.
    width_is_of_heads: whether the width must be a multiple of the heads.
    epsilon: of a config without the field.
    tied: of a config without the field.
    activation: the name of the field.
    is_fused: whether query, key and value are one tensor, and gate and up too.
    experts: of a mixture of experts; None for one MLP.
    off: further fields that must be missing, null or false.
    ignored: further fields that change no output.
  """

  classes: tuple[str, str]
  traits: Mapping[str, Any] = {}
  has_unrotated: bool = False
  numbers: Mapping[str, Number] = {}
  window: windows.Format = windows.Format()
  rotation: rope.Format = rope.Format()
  biases: Mapping[str, tuple[str, ...]] = {}
  head_size: Optional[int] = None
  needs_groups: bool = True
  width_is_of_heads: bool = False
  epsilon: float = 1e-6
  tied: bool = False
  activation: str = 'hidden_act'
  is_fused: bool = False
  experts: Optional[Experts] = None
  off: tuple[str, ...] = ()
  ignored: tuple[str, ...] = ()


_ATTENTION_BIAS = dict(attention_bias=('qkv_bias', 'output_bias'))
_MLP_BIAS = dict(mlp_bias=('mlp_bias',))
# Of training alone.
_ROUTER = ('output_router_logits', 'router_aux_loss_coef',
           'router_jitter_noise')
_GEMMA = dict(
    norms='both', norm_unit_offset=True, embedding_scale='sqrt_width')


def _classes(prefix):
  return f'{prefix}ForCausalLM', f'{prefix}Model'


def _gemma(attention_cap, logits_cap):
  """Returns the numbers of Gemma; its caps may be null."""
  numbers = dict(
      attention_scale=Number(
          'query_pre_attn_scalar', 256, False, lambda x: x**-0.5,
          lambda x: _tidy(x**-2)),
      logits_soft_cap=Number('final_logit_softcapping', logits_cap, True))
  if attention_cap is not None:
    numbers['attention_soft_cap'] = Number(
        'attn_logit_softcapping', attention_cap, True)
  return numbers


def _tidy(value):
  """Undoes the rounding of a number that was inverted twice."""
  value = float(f'{value:.12g}')
  return int(value) if value.is_integer() else value


TYPES = dict(
    llama=ModelType(
        classes=_classes('Llama'),
        biases={**_ATTENTION_BIAS, **_MLP_BIAS},
        needs_groups=False,
        width_is_of_heads=True,
        off=('rope_interleaved',),
        ignored=('is_llama_config',)),
    mistral=ModelType(
        classes=_classes('Mistral'),
        window=windows.Format(windows.ALL, 4096)),
    qwen2=ModelType(
        classes=_classes('Qwen2'),
        traits=dict(qkv_bias=True),
        window=windows.Format(windows.LAST, 4096, has_switch=True)),
    qwen3=ModelType(
        classes=_classes('Qwen3'),
        traits=dict(qk_norm='head'),
        window=windows.Format(windows.LAST, 4096, has_switch=True),
        biases=_ATTENTION_BIAS,
        head_size=128),
    smollm3=ModelType(
        classes=_classes('SmolLM3'),
        has_unrotated=True,
        window=windows.Format(windows.UNROTATED, None, has_switch=True),
        rotation=rope.Format(base=2e6),
        biases={**_ATTENTION_BIAS, **_MLP_BIAS},
        tied=True,
        ignored=('max_window_layers',)),
    phi3=ModelType(
        classes=_classes('Phi3'),
        window=windows.Format(windows.ALL, None),
        rotation=rope.Format(
            length=4096, is_partial=True, kinds=('longrope',)),
        needs_groups=False,
        epsilon=1e-5,
        is_fused=True,
        off=('attention_bias', 'mlp_bias', 'lm_head_bias'),
        ignored=('embd_pdrop', 'full_attn_mod', 'interpolate_factor',
                 'resid_pdrop')),
    mixtral=ModelType(
        classes=_classes('Mixtral'),
        window=windows.Format(windows.ALL, None),
        epsilon=1e-5,
        experts=Experts(
            'num_local_experts', 'intermediate_size', None, 'block_sparse_moe',
            ('w1', 'w3', 'w2')),
        ignored=_ROUTER),
    qwen3_moe=ModelType(
        classes=_classes('Qwen3Moe'),
        traits=dict(qk_norm='head'),
        window=windows.Format(windows.ALL, 4096, has_switch=True),
        biases=_ATTENTION_BIAS,
        experts=Experts(
            'num_experts', 'moe_intermediate_size', 'norm_topk_prob', 'mlp',
            ('gate_proj', 'up_proj', 'down_proj')),
        ignored=('intermediate_size', 'max_window_layers', *_ROUTER)),
    olmo2=ModelType(
        classes=_classes('Olmo2'),
        traits=dict(norms='after', qk_norm='all'),
        biases=_ATTENTION_BIAS,
        needs_groups=False,
        epsilon=1e-5),
    granite=ModelType(
        classes=_classes('Granite'),
        numbers=dict(
            embedding_scale=Number('embedding_multiplier', 1.0),
            attention_scale=Number('attention_multiplier', 1.0),
            residual_scale=Number('residual_multiplier', 1.0),
            logits_scale=Number(
                'logits_scaling', 1.0, False, lambda x: 1 / x,
                lambda x: _tidy(1 / x))),
        biases={**_ATTENTION_BIAS, **_MLP_BIAS},
        needs_groups=False),
    gemma2=ModelType(
        classes=_classes('Gemma2'),
        traits=_GEMMA,
        numbers=_gemma(50.0, 30.0),
        window=windows.Format(windows.ALTERNATING, 4096),
        biases=_ATTENTION_BIAS,
        head_size=256,
        width_is_of_heads=True,
        tied=True,
        activation='hidden_activation',
        off=('use_bidirectional_attention',),
        ignored=('cache_implementation', 'hidden_act', 'sliding_window_size')),
    gemma3_text=ModelType(
        classes=('Gemma3ForCausalLM', 'Gemma3TextModel'),
        traits=dict(_GEMMA, qk_norm='head'),
        numbers=_gemma(None, None),
        window=windows.Format(windows.PATTERN, 4096),
        rotation=rope.Format(base=1e6, window_base=1e4),
        biases=_ATTENTION_BIAS,
        head_size=256,
        width_is_of_heads=True,
        tied=True,
        activation='hidden_activation',
        off=('attn_logit_softcapping', 'use_bidirectional_attention'),
        ignored=('_sliding_window_pattern', 'cache_implementation',
                 'hidden_act', 'sliding_window_pattern')))
