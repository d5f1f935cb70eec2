"""Sentence embeddings: what should three layers of MiniLM learn from six?

  python configs/data/sentences.py
  python -m haikd --config=configs/sentences_methods.py --mode=sweep --seeds=3

The job of sentences_minilm3_from_minilm6.py, with 40 steps of 16 texts of at
most 32 tokens: a method learns the teacher's vectors, which texts of a batch
resemble which, or both its vectors and its hidden states, those of layers at
equal distances (uniform) or of those that resemble the student's most
(adaptive). The learning rate is chosen on the validation split from two.
"""

import sentences_minilm3_from_minilm6

from haikd import config as config_lib

_VECTORS = dict(loss='embedding_cosine')
METHODS = dict(
    vectors=dict(vectors=_VECTORS),
    similarities=dict(similarities=dict(
        loss='similarity_distribution', options=dict(temperature=0.05))),
    uniform=dict(vectors=_VECTORS, states=dict(
        loss='feature_matching', layers='uniform')),
    adaptive=dict(vectors=_VECTORS, states=dict(
        loss='feature_matching', layers='adaptive')),
)


def get_config(variant=''):
  config = sentences_minilm3_from_minilm6.get_config()
  config.steps = 40
  config.batch_size = 16
  config.checkpoint_every = 40
  config.data.options.length = 32
  config.evaluation.every = 40
  config.evaluation.final = 'test[:306]'  # A quarter of the pairs.
  config.evaluation.split = 'validation[:128]'
  config.sweep.learning_rates = (0.5, 1.0)
  config.sweep.metric = 'cosine'
  return config_lib.variant(config, variant or 'vectors', METHODS)
