"""A draft for SmolLM2: which loss makes it propose what the teacher accepts?

  python configs/data/austen.py
  python -m haikd --config=configs/austen_draft.py:start
  python -m haikd --config=configs/austen_draft.py --mode=sweep --seeds=3

In speculative decoding a small network drafts tokens, and the large one accepts
each with the probability min(1, p/q): on average 1 less the total variation of
the two distributions, which is the metric `acceptance`. The student is the
Llama of 10 million parameters of austen_llama_from_smollm2.py. It first learns
the training chapters without the teacher; from there, each loss has the same
steps, learning rate and tokens, and no labels.
"""

import austen_llama_from_smollm2

from haikd import config as config_lib

METHODS = {loss: {loss: dict(loss=loss)} for loss in (
    'kl_divergence', 'reverse_kl', 'total_variation')}


def get_config(variant=''):
  config = austen_llama_from_smollm2.get_config()
  config.baseline = False
  config.data.options.length = 128
  config.evaluation.every = 40
  config.evaluation.final = 'test[:24]'
  config.report.write = False
  if variant == 'start':
    config.steps = 200
    config.batch_size = 8
    config.distillation.alpha = 0.0
    return config
  config.steps = 40
  config.optimizer.warmup_steps = 5
  config.optimizer.learning_rate = 1e-3
  config.student.init = 'runs/austen_draft-start'
  config.student.model = 'llama'
  config.student.options.update(
      depth=2, head_size=64, epsilon=1e-5, rope_base=1e5, tied=True)
  with config.student.ignore_type():
    config.student.init_layers = None
  config.distillation.alpha = None
  return config_lib.variant(config, variant or 'kl_divergence', METHODS)
