"""Writes what a round trip begins with: checkpoints, tokenizers, texts, config.

Networks and tokenizers are made and saved by transformers. Weights are random;
tokenizers are those of each family, trained on texts in six scripts.
"""

from collections.abc import Iterator, Mapping
import functools
import importlib.util
import json
import pathlib
import random
import textwrap
from typing import Any, NamedTuple

import transformers

INTEROP = pathlib.Path(__file__).parents[1] / 'interop'
LENGTH = 40  # Of a row, in tokens.
CONFIG = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.checkpoint_every = 2, 8, 2
      config.data.name, config.data.options = {data!r}, {options!r}
      if {is_text}:
        config.data.source_dir = {folder!r}
      config.teacher.init = 'hf:' + {folder!r} + '/teacher'
      config.student.init = 'hf:' + {folder!r} + '/student'
      config.optimizer.learning_rate = 1e-2
      if {is_embedding}:
        config.distillation.alpha = 0.0
        config.losses.vectors = dict(loss='embedding_cosine')
      config.evaluation.final, config.evaluation.batch_size = 'test', 8
      return config
"""
# {task: (data set, its options)}
DATA = dict(
    classification=('labelled_sentences', dict(length=LENGTH)),
    masked_lm=('masked_text', dict(length=LENGTH)),
    embedding=('sentences', dict(length=LENGTH)),
    causal_lm=('text', dict(length=LENGTH, form='padded')),
    images=('synthetic', dict(size=24, shape=(8, 8, 3), num_classes=3)))
CHAT = [dict(role='system', content='Be brief.'),
        dict(role='user', content=' Γεια  σου, мир? '),
        dict(role='assistant', content='你好。'),
        dict(role='user', content='फिर?')]

_POSITIONS = 64  # The longest text that the networks take.
_SCRIPTS = (
    'the cat sat on a mat while rain fell over Über naïve café',
    'кошка сидела на ковре пока Дождь шёл над старым городом',
    'η γάτα κάθεται στο Χαλί ενώ βρέχει πάνω από την πόλη',
    'جلست القطة على السجادة بينما كان المطر يهطل فوق المدينة',
    'बिल्ली चटाई पर बैठी थी जब पुराने शहर में बारिश हो रही थी',
    '猫坐 在垫 子上 雨落 老城 人们 慢慢 走回 家里 晚饭')
_GAPS = (' ', ' ', ' ', ' ', '  ', ', ', '. ', '\n', ' 2026 ', ' 🙂 ', '-')
_TEMPLATE = (
    '{% for message in messages %}<{{ message.role }}> '
    '{{ message.content | trim }}{{ eos_token }}\n{% endfor %}'
    '{% if add_generation_prompt %}<assistant> {% endif %}')
_BYTES = tuple(f'<0x{i:02X}>' for i in range(256))
_ROBERTA = ('<s>', '<pad>', '</s>', '<unk>')

# {tokenizer: (class, its first tokens, where training does not put them)}
_TOKENIZERS = dict(
    gpt2=('GPT2Tokenizer', ()),
    qwen=('Qwen2Tokenizer', ()),
    llama=('LlamaTokenizer', ('<unk>', '<s>', '</s>', *_BYTES)),
    gemma=('GemmaTokenizer',
           ('<pad>', '<eos>', '<bos>', '<unk>', '<mask>', *_BYTES)),
    bert=('BertTokenizer', ()),
    roberta=('RobertaTokenizer', _ROBERTA),
    xlm_roberta=('XLMRobertaTokenizer', ()),
    mpnet=('MPNetTokenizer', ('<s>', '<pad>', '</s>', '[UNK]')),
    t5=('T5Tokenizer', ()))


class Kind(NamedTuple):
  """The tokenizer of a model type, and fields of its config.

  Attributes:
    tokenizer: its name in `_TOKENIZERS`.
    fields: such that no output depends on and that are not the defaults.
  """

  tokenizer: str
  fields: Mapping[str, Any]


_ATTENTION = dict(max_position_embeddings=_POSITIONS, attention_dropout=0.05)
_HIDDEN = dict(
    max_position_embeddings=_POSITIONS + 2, hidden_dropout_prob=0.05,
    attention_probs_dropout_prob=0.15, initializer_range=0.01)
_PHI = dict(_ATTENTION, embd_pdrop=0.05, resid_pdrop=0.15)
_GPT2 = dict(n_positions=_POSITIONS, attn_pdrop=0.05, embd_pdrop=0.15,
             resid_pdrop=0.2, summary_first_dropout=0.3)

# {case in make_decoder_goldens.py: its kind}
DECODERS = dict(
    llama=Kind('llama', _ATTENTION),
    llama_llama3=Kind('qwen', _ATTENTION),
    mistral=Kind('llama', _ATTENTION),
    qwen2=Kind('qwen', _ATTENTION),
    qwen3=Kind('qwen', _ATTENTION),
    mixtral=Kind('llama', _ATTENTION),
    qwen3_moe=Kind('qwen', _ATTENTION),
    smollm3=Kind('qwen', _ATTENTION),
    phi3=Kind('llama', _PHI),
    olmo2=Kind('gpt2', _ATTENTION),
    granite=Kind('gpt2', _ATTENTION),
    gemma2=Kind('gemma', _ATTENTION),
    gemma3=Kind('gemma', _ATTENTION),
    gpt2=Kind('gpt2', _GPT2))

_IMAGES = ('vit', 'deit')
# {case in make_encoder_goldens.py, but for its head: its kind}
ENCODERS = dict(
    bert=Kind('bert', _HIDDEN | dict(classifier_dropout=0.25)),
    roberta=Kind('roberta', _HIDDEN),
    xlm_roberta=Kind('xlm_roberta', _HIDDEN),
    distilbert=Kind('bert', dict(
        max_position_embeddings=_POSITIONS, dropout=0.05,
        attention_dropout=0.15, qa_dropout=0.25, seq_classif_dropout=0.3)),
    mpnet=Kind('mpnet', _HIDDEN),
    modernbert=Kind('roberta', dict(
        _ATTENTION, embedding_dropout=0.15, mlp_dropout=0.2)),
    t5=Kind('t5', dict(dropout_rate=0.2, initializer_factor=0.5)),
    mt5=Kind('t5', dict(dropout_rate=0.2, initializer_factor=0.5)))


def texts(count: int, seed: int, words: int = 9) -> list[str]:
  """Returns texts in six scripts, of up to so many words.

  The letters of some words are shuffled, so that not all are known.
  """
  rng = random.Random(seed)
  made = []
  for i in range(count):
    known = _SCRIPTS[i % len(_SCRIPTS)].split()
    text = rng.choice(known)
    for _ in range(rng.randrange(words)):
      word = rng.choice(known)
      word = rng.choice((word, word, ''.join(rng.sample(word, len(word)))))
      text += rng.choice(_GAPS) + word
    made.append(rng.choice(('', '', ' ')) + text + rng.choice(('', '.', ' ')))
  return made


def cut(ids: list[int]) -> Iterator[list[int]]:
  """Yields the rows of a text, which continues in the next one."""
  for start in range(0, len(ids), LENGTH):
    yield ids[start:start + LENGTH]


def goldens(name: str):
  """Returns the module that writes goldens of that name."""
  spec = importlib.util.spec_from_file_location(name, INTEROP / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@functools.cache
def tokenizer(name: str) -> transformers.PreTrainedTokenizerBase:
  """Returns a trained tokenizer."""
  class_name, first = _TOKENIZERS[name]
  made = getattr(transformers, class_name)
  trained = made().train_new_from_iterator(texts(600, seed=9), 600)
  if first:
    model = json.loads(trained.backend_tokenizer.to_str())['model']
    tokens = sorted(model['vocab'], key=model['vocab'].get)
    tokens = [*first, *(x for x in tokens if x not in first)]
    vocabulary = dict(vocab={x: i for i, x in enumerate(tokens)})
    if 'merges' in model:
      vocabulary['merges'] = [tuple(merge) for merge in model['merges']]
    trained = made(**vocabulary)
  return trained


def task_of(case: str) -> str:
  """Returns the key of a case's data in `DATA`."""
  if case in DECODERS:
    return 'causal_lm'
  if case.startswith(_IMAGES):
    return 'images'
  return next((head for head in ('classification', 'masked_lm')
               if case.endswith(head)), 'embedding')


def make(case: str, folder: pathlib.Path) -> None:
  """Writes `student`, `teacher`, the texts and `job.py` of a case."""
  task = task_of(case)
  make_network = dict(causal_lm=_make_decoder, images=_make_images).get(
      task, _make_encoder)
  for seed, name in enumerate(('student', 'teacher')):
    make_network(case, folder / name, seed)
  for seed, (split, count) in enumerate(
      dict(train=16, validation=8, test=12).items()):
    (folder / f'{split}.jsonl').write_text(''.join(
        json.dumps(dict(text=text, label=i % 2)) + '\n'
        for i, text in enumerate(texts(count, seed))))
  data, options = DATA[task]
  (folder / 'job.py').write_text(textwrap.dedent(CONFIG.format(
      folder=str(folder), data=data, options=options, is_text=task != 'images',
      is_embedding=task == 'embedding')))


def _make_decoder(case, folder, seed):
  words = tokenizer(DECODERS[case].tokenizer)
  words.chat_template, words.model_max_length = _TEMPLATE, _POSITIONS
  ids = dict(
      bos_token_id=words.bos_token_id, pad_token_id=words.pad_token_id,
      eos_token_id=[words.eos_token_id, len(words) - 1])
  model = goldens('make_decoder_goldens').build(
      case, seed, vocab_size=len(words), **ids, **DECODERS[case].fields)
  model.generation_config = transformers.GenerationConfig(
      **ids, do_sample=True, temperature=0.6, top_p=0.9, max_new_tokens=33,
      repetition_penalty=1.05)
  model.save_pretrained(folder)
  words.save_pretrained(folder)


def _make_encoder(case, folder, seed):
  name = case.removesuffix('_classification').removesuffix('_masked_lm')
  words = tokenizer(ENCODERS[name].tokenizer)
  fields = dict(ENCODERS[name].fields)
  for role in ('bos', 'eos', 'pad', 'cls', 'sep'):
    if (token := getattr(words, f'{role}_token_id')) is not None:
      fields[f'{role}_token_id'] = token
  if task_of(case) == 'classification':
    fields.update(
        num_labels=2, id2label={0: 'no', 1: 'yes'}, label2id=dict(no=0, yes=1))
  module = goldens('make_encoder_goldens')
  model = module.build(case, seed, vocab_size=len(words), **fields)
  model.save_pretrained(folder)
  words.save_pretrained(folder)


def _make_images(case, folder, seed):
  model = goldens('make_encoder_goldens').build(
      case, seed, hidden_dropout_prob=0.05, attention_probs_dropout_prob=0.15,
      id2label={0: 'cat', 1: 'dog', 2: 'owl'},
      label2id=dict(cat=0, dog=1, owl=2))
  model.save_pretrained(folder)
  transformers.ViTImageProcessor(
      size=dict(height=8, width=8), image_mean=[0.1, 0.2, 0.3],
      image_std=[0.5, 0.4, 0.3]).save_pretrained(folder)
