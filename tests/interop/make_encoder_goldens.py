"""Writes tiny random encoders of transformers, and their outputs.

Run it where PyTorch and transformers are installed:

  python tests/interop/make_encoder_goldens.py

Each case is a folder in `golden/` with `config.json`, `model.safetensors` and
`expected.npz`: the inputs, and in float32 every hidden state, every attention
map and the outputs, for rows padded on the left and on the right.

If HAIKD_MINILM names the folder of all-MiniLM-L6-v2, it also writes
`golden/minilm.json`: sentences and the cosines of their embeddings.
"""

import json
import os
import pathlib

import numpy as np
import torch
import transformers

GOLDEN = pathlib.Path(__file__).parent / 'golden'
LENGTHS = (7, 3, 5)  # Of the texts; rows are padded to the longest.

_SIZES = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=24)
_BERT = dict(
    **_SIZES, vocab_size=40, max_position_embeddings=12, type_vocab_size=2)
_ROBERTA = _BERT | dict(type_vocab_size=1, layer_norm_eps=1e-5)
_MPNET = _SIZES | dict(vocab_size=40, max_position_embeddings=12)
_DISTILBERT = dict(
    dim=16, n_layers=2, n_heads=4, hidden_dim=24, vocab_size=40,
    max_position_embeddings=12)
# With as many buckets as the longest row has use for.
_T5 = dict(
    d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=4, vocab_size=40,
    relative_attention_num_buckets=8, relative_attention_max_distance=6)
# Its second block has a window, of one key on either side.
_MODERNBERT = _SIZES | dict(
    vocab_size=40, max_position_embeddings=12, num_hidden_layers=3,
    layer_types=['full_attention', 'sliding_attention', 'full_attention'],
    local_attention=3, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    cls_token_id=1, sep_token_id=1)
_IMAGES = dict(**_SIZES, image_size=8, patch_size=4, num_channels=3)

SENTENCES = (
    'A man is eating food.',
    'A man is eating a piece of bread.',
    'Two women are playing the violin on a stage in front of many people.',
    'The stock market fell by three percent on Monday, its worst day since '
    'March.',
    'Bread')

_OFFSET = ('Roberta', 'XLMRoberta', 'MPNet')  # Their positions begin at 2.

# {case: (class, fields of its config)}
TEXT = dict(
    bert=('Bert', 'Model', _BERT),
    bert_classification=('Bert', 'ForSequenceClassification',
                         _BERT | dict(num_labels=3, hidden_act='gelu_new')),
    bert_masked_lm=('Bert', 'ForMaskedLM', _BERT | dict(hidden_act='relu')),
    roberta=('Roberta', 'Model', _ROBERTA),
    roberta_classification=('Roberta', 'ForSequenceClassification',
                            _ROBERTA | dict(num_labels=2)),
    roberta_masked_lm=('Roberta', 'ForMaskedLM', _ROBERTA),
    xlm_roberta=('XLMRoberta', 'Model', _ROBERTA),
    mpnet=('MPNet', 'Model', _MPNET),
    mpnet_classification=('MPNet', 'ForSequenceClassification',
                          _MPNET | dict(num_labels=2)),
    mpnet_masked_lm=('MPNet', 'ForMaskedLM', _MPNET),
    modernbert=('ModernBert', 'Model', _MODERNBERT),
    modernbert_classification=('ModernBert', 'ForSequenceClassification',
                               _MODERNBERT | dict(
                                   num_labels=3, classifier_pooling='mean',
                                   classifier_bias=True)),
    modernbert_masked_lm=('ModernBert', 'ForMaskedLM', _MODERNBERT | dict(
        norm_bias=True, attention_bias=True, mlp_bias=True)),
    t5=('T5', 'EncoderModel', _T5),
    mt5=('MT5', 'EncoderModel', _T5 | dict(feed_forward_proj='gated-gelu')),
    distilbert=('DistilBert', 'Model', _DISTILBERT),
    distilbert_classification=('DistilBert', 'ForSequenceClassification',
                               _DISTILBERT | dict(num_labels=4)),
    distilbert_masked_lm=('DistilBert', 'ForMaskedLM', _DISTILBERT),
)
IMAGES = dict(
    vit=('ViT', 'ForImageClassification', _IMAGES | dict(num_labels=3)),
    vit_no_bias=('ViT', 'ForImageClassification', _IMAGES | dict(
        num_labels=3, num_channels=1, qkv_bias=False, layer_norm_eps=1e-3)),
    deit=('DeiT', 'ForImageClassification', _IMAGES | dict(num_labels=3)),
    deit_teacher=('DeiT', 'ForImageClassificationWithTeacher',
                  _IMAGES | dict(num_labels=3)),
)


def build(case: str, seed: int = 0, **more) -> transformers.PreTrainedModel:
  """Returns a random network of a case; `more` replaces fields of its config.
  """
  family, ending, fields = (TEXT | IMAGES)[case]
  config = getattr(transformers, f'{family}Config')(**fields | more)
  config._attn_implementation = 'eager'
  torch.manual_seed(seed)
  model = getattr(transformers, family + ending)(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(0, 0.3)
      if 'norm' in name.lower() and name.endswith('weight'):
        parameter.add_(1)
  return model


def make(case: str, folder: pathlib.Path, seed: int = 0) -> None:
  """Writes the folder of one case."""
  model = build(case, seed)
  model.save_pretrained(folder)
  np.savez_compressed(folder / 'expected.npz', **compute(case, model, seed))


def load(folder: pathlib.Path) -> transformers.PreTrainedModel:
  """Returns the network in a folder, in the class that its config names."""
  config = transformers.AutoConfig.from_pretrained(folder)
  return getattr(transformers, config.architectures[0]).from_pretrained(
      folder, attn_implementation='eager').eval()


def compute(case: str, model: transformers.PreTrainedModel,
            seed: int = 0) -> dict[str, np.ndarray]:
  """Returns inputs and what the network of a case computes of them."""
  family, ending, _ = (TEXT | IMAGES)[case]
  generator = np.random.default_rng(seed)
  with torch.no_grad():
    if case in IMAGES:
      return _images(model, generator)
    return _text(model, generator, family, ending)


def _text(model, generator, family, ending):
  rows = [generator.integers(2, 40, length) for length in LENGTHS]
  types = [np.arange(length) >= length // 2 for length in LENGTHS]
  has_types = family == 'Bert'
  expected = {}

  def run(tokens, types, mask):
    places = np.maximum(np.cumsum(mask, 1) - 1, 0)
    places += 2 if family in _OFFSET else 0
    inputs = dict(input_ids=tokens, attention_mask=mask)
    if ending != 'EncoderModel':
      inputs['position_ids'] = places
    if has_types:
      inputs['token_type_ids'] = types
    inputs = {name: torch.tensor(value, dtype=torch.long)
              for name, value in inputs.items()}
    return model(
        **inputs, output_hidden_states=True, output_attentions=True)

  for side in ('left', 'right'):

    def pad(row, side=side):
      missing = (max(LENGTHS) - len(row), 0)
      return np.pad(row, missing if side == 'left' else missing[::-1])

    tokens = np.stack([pad(row) for row in rows])
    kinds = np.stack([pad(row) for row in types])
    mask = np.stack([pad(np.ones(n, int)) for n in LENGTHS])
    outputs = run(tokens, kinds, mask)
    expected[f'{side}/tokens'] = tokens.astype(np.int32)
    expected[f'{side}/types'] = kinds.astype(np.int32)
    expected[f'{side}/mask'] = mask.astype(bool)
    expected.update(_inside(f'{side}/', outputs))
    if ending.endswith('Model'):
      weights = torch.tensor(mask)[..., None]
      mean = (outputs.last_hidden_state * weights).sum(1) / weights.sum(1)
      expected[f'{side}/mean'] = mean.numpy()
      expected[f'{side}/mean_normalised'] = (
          torch.nn.functional.normalize(mean).numpy())
    if ending == 'ForMaskedLM':
      expected[f'{side}/logits'] = outputs.logits.numpy()
  # Each text without padding, since these heads read the first token of a row.
  alone = [run(row[None], kind[None], np.ones((1, len(row)), int))
           for row, kind in zip(rows, types)]
  if ending.endswith('Model'):
    token = torch.cat([each.last_hidden_state[:, 0] for each in alone])
    expected['token'] = token.numpy()
    expected['token_normalised'] = torch.nn.functional.normalize(token).numpy()
  if ending == 'ForSequenceClassification':
    expected['logits'] = torch.cat([each.logits for each in alone]).numpy()
  return expected


def _images(model, generator):
  channels = model.config.num_channels
  images = generator.normal(size=(2, 8, 8, channels)).astype(np.float32)
  outputs = model(
      torch.tensor(images.transpose(0, 3, 1, 2)), output_hidden_states=True,
      output_attentions=True)
  return dict(
      images=images, logits=outputs.logits.numpy(), **_inside('', outputs))


def _inside(prefix, outputs):
  return {
      f'{prefix}hidden': torch.stack(outputs.hidden_states).numpy(),
      f'{prefix}maps': torch.stack(outputs.attentions).numpy(),
  }


def make_cosines(folder: str, path: pathlib.Path) -> None:
  """Writes the cosines of some sentences by a sentence encoder's weights."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModel.from_pretrained(
      folder, dtype=torch.float32).eval()
  batch = tokenizer(list(SENTENCES), padding=True, return_tensors='pt')
  with torch.no_grad():
    hidden = model(**batch).last_hidden_state
  weights = batch['attention_mask'][..., None]
  mean = (hidden * weights).sum(1) / weights.sum(1)
  vectors = torch.nn.functional.normalize(mean).double()
  content = dict(
      sentences=SENTENCES,
      lengths=batch['attention_mask'].sum(1).tolist(),
      cosines=(vectors @ vectors.T).tolist())
  path.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
  for name in (*TEXT, *IMAGES):
    make(name, GOLDEN / name)
  if 'HAIKD_MINILM' in os.environ:
    make_cosines(os.environ['HAIKD_MINILM'], GOLDEN / 'minilm.json')
