"""Sentence embeddings: three layers of MiniLM learn from all six.

  python configs/data/sentences.py
  python -m haikd.launch --config=configs/sentences_minilm3_from_minilm6.py

The teacher is all-MiniLM-L6-v2. The student starts as its layers 0, 2 and 4
with its embeddings. From glosses of WordNet, without labels, it learns the
teacher's vectors and how similar the texts of a batch are to the teacher. The
test split is Lee's 1,225 pairs of news texts. The metric is Spearman's
correlation of the cosine with human judgements of similarity, for the teacher,
the untrained student (the teacher without half of its layers) and the trained
student.
"""

import pathlib

from haikd import config as config_lib
from haikd.core import checks

_TEACHER = pathlib.Path('data/minilm')


def get_config(variant=''):
  if not _TEACHER.is_dir():
    raise checks.ConfigError(
        f'{_TEACHER}, the folder of the teacher, is missing. Run '
        '`python configs/data/sentences.py` first.')
  config = config_lib.base()
  config.steps = 100
  config.batch_size = 32
  config.log_every = 10
  config.data.name = 'sentences'
  config.data.source_dir = 'data/sentences'
  config.data.options = dict(length=128)
  config.evaluation.every = 50
  config.evaluation.split = 'validation[:256]'
  config.evaluation.batch_size = 64

  config.teacher.init = f'hf:{_TEACHER}'
  config.student.init = f'hf:{_TEACHER}'
  config.student.init_layers = (0, 2, 4)

  config.distillation.alpha = 0.0  # The networks have no logits.
  config.losses.vectors = dict(loss='embedding_cosine', weight=1.0)
  config.losses.similarities = dict(
      loss='similarity_distribution',
      weight=0.1,
      options=dict(temperature=0.05))

  config.optimizer.learning_rate = 3e-4
  config.optimizer.warmup_steps = 10
  config.optimizer.weight_decay = 0.01
  config.optimizer.clip_norm = 1.0
  return config_lib.variant(config, variant)
