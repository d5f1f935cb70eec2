"""The cases of the benchmark: networks, sizes, losses, and the batch."""

from collections.abc import Iterable
import copy
from typing import Any

import numpy as np

from haikd.core import base
from haikd.core import checks

Case = dict[str, Any]  # As in the JSON file.

# Kinds of cases whose sides do not compute the same, so that only their time is
# compared: evaluation with passes of the networks, and data with a library.
EVALUATION, DECODING, PREPARATION = 'evaluation', 'decoding', 'preparation'

REFERENCES = ('materialised', 'fused')
# The reference of a case that has a loss of its own: the same step with this.
BASELINE = 'kl_divergence'

# 30 and 6 million parameters with a vocabulary of 8,192, untied.
_LLAMAS = dict(
    student=('llama', dict(width=256, depth=4, heads=4, hidden=1024)),
    teacher=('llama', dict(width=512, depth=8, heads=8, hidden=2048)))
# The shape of SmolLM2 135M with a student of 25 million parameters, and that of
# Qwen3 0.6B with one of 69 million.
_SMOLLM2 = dict(
    student=('llama', dict(width=448, depth=2, heads=6, key_value_heads=2,
                           head_size=64, hidden=768, tied=True)),
    teacher=('llama', dict(width=576, depth=30, heads=9, key_value_heads=3,
                           hidden=1536, tied=True)))
_QWEN3 = dict(
    student=('llama', dict(width=384, depth=6, heads=6, key_value_heads=2,
                           hidden=1152, qk_norm='head', tied=True)),
    teacher=('llama', dict(width=1024, depth=28, heads=16, key_value_heads=8,
                           head_size=128, hidden=3072, qk_norm='head',
                           tied=True)))
_VIT = dict(patch_size=2, mlp_ratio=2.0, pool='mean')
_DIGITS = dict(
    student=('vit', dict(_VIT, width=32, depth=2, heads=2)),
    teacher=('vit', dict(_VIT, width=64, depth=4, heads=4)))


def _text(title, *, batch=8, length=256, classes=8192, features=False,
          attention=False, networks=_LLAMAS, alpha=0.9,
          optimizer=('adamw', 1e-3)):
  return dict(
      networks, title=title, kind='text', shape=(batch, length),
      classes=classes, features=features, attention=attention,
      temperature=2.0, alpha=alpha, optimizer=optimizer)


def _images(title, shape, *, student, teacher, matching=False, classes=10):
  return dict(
      title=title, kind='images', shape=shape, classes=classes,
      student=student, teacher=teacher, features=matching, attention=matching,
      temperature=2.0, alpha=0.9, optimizer=('adamw', 1e-3))


def _loss_logits(classes):
  sides = {side: ('bench/hidden', dict(rows=8, width=width))
           for side, width in (('student', 256), ('teacher', 512))}
  return _text(
      f'the losses on logits alone, of {classes:,} tokens',
      classes=classes, networks=sides, optimizer=('sgd', 100.0))


def _divergence(loss):
  case = _loss_logits(65536)
  return case | dict(
      title=f'{loss} against {BASELINE}, 65,536 tokens', loss=loss)


def _records(classes, networks=_LLAMAS, teacher='the teacher', batch=4):
  return dict(
      _text(f'records of {teacher} against itself, {classes:,} tokens',
            batch=batch, classes=classes, networks=networks, alpha=1.0),
      loss=BASELINE,
      records=dict(kind='sampled', exact=16, draws=32, bits=8, temperature=2.0))


def _evaluation(batch):
  return dict(
      _text('Llamas evaluated, against their passes and logits', batch=batch),
      kind=EVALUATION)


def _decoding(batch):
  return dict(
      title='images decoded, cut, flipped and scaled, against PIL',
      kind=DECODING, shape=(batch, 64, 64, 3), classes=10, files=4 * batch,
      side=160, mean=0.45, std=0.25)


def _preparation(texts):
  return dict(
      title='texts prepared from JSON lines, against tokenizers',
      kind=PREPARATION, shape=(texts, 256), words=400, classes=8192)


def _fed(case):
  decoding = _decoding(case['shape'][0])
  return dict(
      case | {x: decoding[x] for x in ('files', 'side', 'mean', 'std')},
      title='ViT fed with JPEG files, against the step alone',
      loss=BASELINE, fed=True)


def _loss_attention(length):
  sides = {side: ('bench/maps', dict(rows=2, heads=heads, head_size=64))
           for side, heads in (('student', 4), ('teacher', 8))}
  return _text(
      f'attention transfer alone, {length:,} positions',
      batch=2, length=length, classes=1, networks=sides, attention=True,
      alpha=0.0, optimizer=('sgd', 1e5))


CASES: dict[str, Case] = dict(
    logits=_text('Llama 4 x 256 from 8 x 512: logits of 8,192 tokens'),
    features=_text('logits, and features of every layer', features=True),
    attention=_text(
        'logits, features and attention', features=True, attention=True),
    large_vocabulary=_text(
        'logits of 65,536 tokens', batch=2, length=512, classes=65536),
    long_sequence=_text(
        'logits and attention of one row of 2,048 tokens',
        batch=1, length=2048, attention=True),
    vision=_images(
        'ViT 4 x 96 from 8 x 192: logits, features, attention',
        (8, 56, 56, 3), matching=True, classes=100,
        student=('vit', dict(_VIT, width=96, depth=4, heads=2, patch_size=4)),
        teacher=('vit', dict(_VIT, width=192, depth=8, heads=4, patch_size=4))),
    digits_mlp=_images(
        'MLP from convnet, images of 8 x 8: logits', (128, 8, 8, 1),
        student=('mlp', dict(hidden=(128, 128))),
        teacher=('convnet', dict(channels=(64, 128)))),
    digits_vit=_images(
        'ViT from ViT, images of 8 x 8: logits', (128, 8, 8, 1), **_DIGITS),
    digits_vit_matching=_images(
        'ViT from ViT, 8 x 8: logits, features, attention',
        (128, 8, 8, 1), matching=True, **_DIGITS),
    fashion_convnet=_images(
        'convnet from convnet, images of 28 x 28: logits', (128, 28, 28, 1),
        student=('convnet', dict(channels=(8, 16, 32))),
        teacher=('convnet', dict(channels=(16, 32, 64)))),
    loss_logits_8k=_loss_logits(8192),
    loss_logits_64k=_loss_logits(65536),
    loss_logits_150k=_loss_logits(151936),
    divergence_reverse=_divergence('reverse_kl'),
    divergence_js=_divergence('jensen_shannon'),
    divergence_skewed=_divergence('skewed_kl'),
    divergence_variation=_divergence('total_variation'),
    divergence_top_k=_divergence('top_k_kl'),
    records_48k=_records(49152),
    records_150k=_records(151936),
    records_smollm2=_records(49152, _SMOLLM2, 'a SmolLM2 135M'),
    records_qwen3=_records(151936, _QWEN3, 'a Qwen3 0.6B', batch=2),
    loss_attention_1k=_loss_attention(1024),
    loss_attention_2k=_loss_attention(2048),
    evaluation=_evaluation(8),
    decoding=_decoding(32),
    preparation=_preparation(2000),
    fed_vision=_fed(_images(
        'ViT 4 x 96 from 8 x 192: logits', (32, 64, 64, 3), classes=10,
        student=('vit', dict(_VIT, width=96, depth=4, heads=2, patch_size=8)),
        teacher=('vit', dict(
            _VIT, width=192, depth=8, heads=4, patch_size=8)))),
)


def choose(names: Iterable[str], reference: str,
           padding: float) -> dict[str, Case]:
  """Returns the cases to measure, complete.

  Args:
    names: names of cases; empty for all that the reference has.
    reference: one of `REFERENCES`; `fused` is for text only.
    padding: for text, the mean fraction of padding in a row.

  Returns:
    `{name: case}`.

  Raises:
    ConfigError: an unknown name, or a case that the reference does not have.
  """
  names = list(dict.fromkeys(names))
  for name in names:
    if name not in CASES:
      raise checks.ConfigError(
          f'--case must be a known name; got {name!r}. '
          f'{checks.suggest(name, CASES)}')
    if not _suits(CASES[name], reference):
      raise checks.ConfigError(
          f'--reference must be materialised for --case={name}; got '
          f'--reference={reference}. Cases of text have both.')
  names = names or [x for x in CASES if _suits(CASES[x], reference)]
  return {
      name: dict(
          copy.deepcopy(CASES[name]), padding=padding,
          reference=BASELINE if 'loss' in CASES[name] else reference)
      for name in names
  }


def baseline(case: Case) -> Case:
  """Returns the reference of a case that is compared with haikd itself."""
  plain = {name: x for name, x in case.items()
           if name not in ('records', 'fed')}
  return dict(plain, loss=BASELINE)


def batch_of(case: Case) -> base.Batch:
  """Returns the batch of a case: NumPy arrays, the same at every call.

  Rows of text have different lengths and are padded on the right. A label is
  the next token, or -100 if there is none.
  """
  rng: Any = np.random.RandomState(0)
  if case['kind'] == 'images':
    count = case['shape'][0]
    return base.Batch(
        inputs=rng.rand(*case['shape']).astype(np.float32),
        mask=np.ones(count, bool),
        labels=rng.randint(0, case['classes'], count).astype(np.int32))
  rows, length = case['shape']
  tokens = rng.randint(0, case['classes'], case['shape']).astype(np.int32)
  lengths = lengths_of(rows, length, case['padding'])
  mask = np.arange(length) < lengths[:, None]
  labels = np.full_like(tokens, -100)
  labels[:, :-1] = np.where(mask[:, 1:], tokens[:, 1:], -100)
  # Without a weight of the logits' losses nothing is learned from labels.
  return base.Batch(np.where(mask, tokens, 0), mask,
                    labels if case['alpha'] else None)


def lengths_of(rows: int, length: int, padding: float) -> np.ndarray:
  """Returns the lengths of rows, spread evenly around a mean.

  Args:
    rows: the number of rows.
    length: the largest length.
    padding: the mean fraction of padding in a row, from 0 to below 1.

  Returns:
    `[rows]` integers, from 1 to `length`.
  """
  spread = np.linspace(-1, 1, rows + 2)[1:-1] * min(padding, 1 - padding)
  lengths = np.rint(length * (1 - padding - spread)).astype(int)
  return np.clip(lengths, 1, length)


def _suits(case, reference):
  return case['kind'] == 'text' or reference == 'materialised'
