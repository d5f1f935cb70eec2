"""Writes tiny random decoders of transformers, and their outputs.

Run it where PyTorch and transformers are installed:

  python tests/interop/make_decoder_goldens.py [case ...]

Each case is a folder in `golden/` with `config.json`, `model.safetensors` and
`expected.npz`: tokens, and in float32 every hidden state, every attention map
and the logits, for rows padded on the left and on the right.
"""

import copy
import pathlib
import sys

import numpy as np
import torch
import transformers

GOLDEN = pathlib.Path(__file__).parent / 'golden'
LENGTHS = (7, 2, 4)  # Of the texts; rows are padded to the longest.
VOCABULARY = 24

_LLAMA = dict(
    vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=16, rms_norm_eps=1e-5)
# The defaults are beyond this vocabulary.
_OTHER = _LLAMA | dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_GEMMA = _OTHER | dict(head_dim=6)
_GPT2 = dict(
    vocab_size=VOCABULARY, n_positions=12, n_embd=16, n_layer=2, n_head=4)

# Every scaling that depends on a length sees longer and shorter texts.
_SHORT = dict(original_max_position_embeddings=4)


def _rope(**fields):
  return _LLAMA | dict(rope_parameters=dict(rope_theta=100.0, **fields))


_CONFIGS = dict(Gemma3='Gemma3TextConfig')  # The others are <family>Config.

# {case: (family, fields of its config)}
CASES = dict(
    llama=('Llama', _LLAMA | dict(num_key_value_heads=4)),
    llama_linear=('Llama', _rope(rope_type='linear', factor=2.5)),
    llama_dynamic=('Llama', _rope(rope_type='dynamic', factor=3.0) | dict(
        max_position_embeddings=4, num_attention_heads=2)),
    llama_yarn=('Llama', _rope(
        rope_type='yarn', factor=4.0, beta_fast=0.9, beta_slow=0.1,
        **_SHORT) | dict(head_dim=8)),
    llama_llama3=('Llama', _rope(
        rope_type='llama3', factor=8.0, low_freq_factor=0.2,
        high_freq_factor=0.8, **_SHORT) | dict(head_dim=8)),
    llama_longrope=('Llama', _rope(
        rope_type='longrope', factor=4.0, short_factor=[1.0, 1.5],
        long_factor=[2.0, 5.0], **_SHORT)),
    llama_biases=('Llama', _LLAMA | dict(
        attention_bias=True, mlp_bias=True, hidden_act='gelu')),
    smollm2=('Llama', _LLAMA | dict(
        tie_word_embeddings=True, num_attention_heads=3, num_key_value_heads=1,
        hidden_size=18)),
    mistral=('Mistral', _LLAMA | dict(sliding_window=3, head_dim=6)),
    qwen2=('Qwen2', _LLAMA | dict(
        num_hidden_layers=3, use_sliding_window=True, sliding_window=4,
        max_window_layers=1)),
    qwen3=('Qwen3', _LLAMA | dict(head_dim=6, tie_word_embeddings=True)),
    qwen3_biases=('Qwen3', _LLAMA | dict(
        head_dim=6, attention_bias=True, use_sliding_window=True,
        sliding_window=2, layer_types=['sliding_attention', 'full_attention'])),
    smollm3=('SmolLM3', _OTHER | dict(
        num_hidden_layers=3, no_rope_layers=[1, 0, 1], use_sliding_window=True,
        sliding_window=3, tie_word_embeddings=True)),
    # Without a factor it is 16 / 4; the partial rotation has 4 of 6 features.
    phi3=('Phi3', _OTHER | dict(
        hidden_size=24, sliding_window=3, partial_rotary_factor=0.75,
        original_max_position_embeddings=4, rope_parameters=dict(
            rope_theta=100.0, rope_type='longrope', short_factor=[1.0, 1.5],
            long_factor=[2.0, 5.0]))),
    olmo2=('Olmo2', _OTHER),
    mixtral=('Mixtral', _OTHER | dict(num_local_experts=4)),
    qwen3_moe=('Qwen3Moe', _OTHER | dict(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
        head_dim=6)),
    granite=('Granite', _OTHER | dict(
        embedding_multiplier=6.0, attention_multiplier=0.4,
        residual_multiplier=0.22, logits_scaling=3.0, mlp_bias=True)),
    # Small caps, so that they change much.
    gemma2=('Gemma2', _GEMMA | dict(
        num_hidden_layers=3, sliding_window=3, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0, query_pre_attn_scalar=5)),
    gemma3=('Gemma3', _GEMMA | dict(
        num_hidden_layers=3, sliding_window=3, query_pre_attn_scalar=5,
        layer_types=['sliding_attention', 'full_attention',
                     'sliding_attention'],
        rope_parameters=dict(
            full_attention=dict(
                rope_type='linear', factor=2.5, rope_theta=100.0),
            sliding_attention=dict(rope_type='default', rope_theta=20.0)))),
    gpt2=('GPT2', _GPT2),
    gpt2_untied=('GPT2', _GPT2 | dict(
        tie_word_embeddings=False, n_inner=20, activation_function='relu',
        layer_norm_epsilon=1e-3)),
)


def build(case: str, seed: int = 0, **more) -> transformers.PreTrainedModel:
  """Returns a random network of a case; `more` replaces fields of its config.
  """
  family, fields = CASES[case]
  config = getattr(transformers, _CONFIGS.get(family, f'{family}Config'))(
      **fields | more)
  ending = 'LMHeadModel' if family == 'GPT2' else 'ForCausalLM'
  torch.manual_seed(seed)
  model = getattr(transformers, family + ending)(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(0, 0.3)
      if 'norm' in name or '.ln_' in name:
        parameter.add_(name.endswith('weight'))
  return model


def make(case: str, folder: pathlib.Path, seed: int = 0) -> None:
  """Writes the folder of one case."""
  model = build(case, seed)
  model.save_pretrained(folder)
  (folder / 'generation_config.json').unlink()
  generator = np.random.default_rng(seed)
  texts = [generator.integers(0, VOCABULARY, n) for n in LENGTHS]
  expected = {}
  for side in ('left', 'right'):

    def pad(text, side=side):
      missing = (max(LENGTHS) - len(text), 0)
      return np.pad(text, missing if side == 'left' else missing[::-1])

    tokens = np.stack([pad(text) for text in texts])
    mask = np.stack([pad(np.ones(n, int)) for n in LENGTHS])
    computed = compute(model, tokens, mask)
    computed.update(tokens=tokens.astype(np.int32), mask=mask.astype(bool))
    expected.update({f'{side}/{name}': x for name, x in computed.items()})
  np.savez_compressed(folder / 'expected.npz', **expected)


def compute(model, tokens: np.ndarray,
            mask: np.ndarray) -> dict[str, np.ndarray]:
  """Returns what a model computes of rows.

  Args:
    model: of transformers.
    tokens: `[B, N]`.
    mask: `[B, N]`.

  Returns:
    `hidden`, the outputs of the embedding, each block and the last norm,
    `[L + 2, B, N, D]`; `maps`, `[L, B, H, N, N]`; `logits`, `[B, N, V]`.
  """
  rows = []
  for row, real in zip(tokens, mask):
    # Row by row and with a fresh model each: some models scale RoPE by the
    # longest row that they have seen.
    fresh = copy.deepcopy(model)
    fresh.set_attn_implementation('eager')
    last = []
    blocks = fresh.transformer.h if hasattr(
        fresh, 'transformer') else fresh.model.layers
    blocks[-1].register_forward_hook(
        lambda module, inputs, output, last=last: last.append(
            output[0] if isinstance(output, tuple) else output))
    places = np.maximum(np.cumsum(real) - 1, 0)
    with torch.no_grad():
      outputs = fresh(
          input_ids=torch.tensor(row)[None],
          attention_mask=torch.tensor(real)[None],
          position_ids=torch.tensor(places)[None],
          output_hidden_states=True,
          output_attentions=True)
    *hidden, normed = outputs.hidden_states
    hidden += [last[0].reshape(normed.shape), normed]
    rows.append(dict(
        hidden=torch.stack(hidden)[:, 0],
        maps=torch.stack(outputs.attentions)[:, 0],
        logits=outputs.logits[0]))
  by_name = {name: [row[name].numpy() for row in rows] for name in rows[0]}
  return {name: np.stack(values, axis=0 if name == 'logits' else 1)
          for name, values in by_name.items()}


if __name__ == '__main__':
  for each in sys.argv[1:] or CASES:
    make(each, GOLDEN / each)
