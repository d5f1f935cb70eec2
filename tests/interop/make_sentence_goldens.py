"""Writes tiny random folders of sentence-transformers, and their vectors.

Run it where PyTorch, transformers and sentence-transformers are installed:

  python tests/interop/make_sentence_goldens.py

Each case is a folder in `golden/` as `SentenceTransformer.save` writes it,
with `expected.json`: texts and their vectors.
"""

import json
import pathlib

import sentence_transformers
from sentence_transformers import models
import tokenizers
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
import torch
import transformers

GOLDEN = pathlib.Path(__file__).parent / 'golden'
TEXTS = ('A man is eating food.', 'bread', 'the play of a violin, on a stage',
         'Naïve words')

_LETTERS = 'abcdefghijklmnopqrstuvwxyz'
_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
_TOKENS = (*_SPECIAL, *_LETTERS, *(f'##{letter}' for letter in _LETTERS),
           ',', '.', 'the', 'man', '##ing')
_TANH, _IDENTITY = torch.nn.Tanh(), torch.nn.Identity()

_BERT = transformers.BertConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=12, max_position_embeddings=40, vocab_size=len(_TOKENS))
_T5 = transformers.T5Config(
    d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, pad_token_id=0,
    vocab_size=len(_TOKENS))

# {case: (config, class, pooling, modules after it)}; a Dense is its sizes,
# whether it has a bias, and its activation.
CASES = dict(
    sentence_bert=(_BERT, transformers.BertModel, 'mean_sqrt_len_tokens',
                   ('normalise', (8, 6, True, _TANH), (6, 5, False, _IDENTITY))
                   ),
    sentence_t5=(_T5, transformers.T5EncoderModel, 'mean',
                 ((8, 6, False, _IDENTITY), 'normalise')),
)


def make(case: str, folder: pathlib.Path, *, seed: int = 0,
         pooling: str = '') -> None:
  """Writes the folder of one case.

  Args:
    case: of CASES.
    folder: to write to.
    seed: of the weights.
    pooling: another one than that of the case; empty for that.
  """
  config, network, mode, after = CASES[case]
  torch.manual_seed(seed)
  encoder = network(config).eval()
  encoder.save_pretrained(folder)
  _tokenizer().save_pretrained(folder)
  modules = [models.Transformer(str(folder)),
             models.Pooling(8, pooling_mode=pooling or mode)]
  for module in after:
    if module == 'normalise':
      modules.append(models.Normalize())
    else:
      size, outputs, bias, activation = module
      modules.append(models.Dense(
          size, outputs, bias=bias, activation_function=activation))
  with torch.no_grad():
    for module in modules:
      for name, parameter in module.named_parameters():
        parameter.normal_(0, 0.3)
        if 'norm' in name.lower() and name.endswith('weight'):
          parameter.add_(1)
  model = sentence_transformers.SentenceTransformer(
      modules=modules, device='cpu')
  model.save(str(folder), create_model_card=False)
  content = dict(texts=TEXTS, vectors=model.encode(list(TEXTS)).tolist())
  (folder / 'expected.json').write_text(json.dumps(content) + '\n')


def encode(folder: pathlib.Path, texts: list[str]) -> list[list[float]]:
  """Returns the vectors of texts by the folder of a model."""
  model = sentence_transformers.SentenceTransformer(str(folder), device='cpu')
  return model.encode(texts).tolist()


def _tokenizer():
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(
      {token: i for i, token in enumerate(_TOKENS)}, unk_token='[UNK]'))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
  names = dict(zip(('pad', 'unk', 'cls', 'sep', 'mask'), _SPECIAL))
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizer,
      **{f'{name}_token': token for name, token in names.items()})


if __name__ == '__main__':
  for name in CASES:
    make(name, GOLDEN / name)
