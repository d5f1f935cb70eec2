"""Jane Austen: a Llama with 10 million parameters learns from SmolLM2 135M.

  python configs/data/austen.py
  python -m haikd.launch --config=configs/austen_llama_from_smollm2.py

For both networks the vocabulary is pruned to the tokens that the training
chapters use, and the teacher's distribution is renormalised exactly over them.
The student starts from parts of the teacher: its first two layers of thirty,
448 of 576 features, 6 of 9 heads and half of the hidden units. The baseline is
the same student, trained on the same tokens without the teacher. Both are
compared by their perplexity on chapters that neither has seen.
"""

import pathlib

from haikd import config as config_lib
from haikd.core import checks

_TEACHER = pathlib.Path('data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf')


def get_config(variant=''):
  if not _TEACHER.is_file():
    raise checks.ConfigError(
        f'{_TEACHER}, the teacher, is missing. Run '
        '`python configs/data/austen.py` first.')
  config = config_lib.base()
  config.baseline = True
  config.steps = 150
  config.batch_size = 4
  config.log_every = 10
  config.data.name = 'text'
  config.data.source_dir = 'data/austen'
  config.data.options = dict(length=256, prune=True)
  config.evaluation.every = 50
  config.evaluation.split = 'validation[:8]'
  config.evaluation.final = 'test[:64]'
  config.evaluation.batch_size = 4

  config.teacher.init = f'gguf:{_TEACHER}'
  config.student.init = f'gguf:{_TEACHER}'
  config.student.init_layers = (0, 1)
  config.student.options = dict(
      width=448, heads=6, key_value_heads=2, hidden=768)

  config.distillation.temperature = 1.0
  config.distillation.alpha = 0.9

  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 20
  config.optimizer.weight_decay = 0.1
  config.optimizer.clip_norm = 1.0
  config.optimizer.options = dict(b2=0.95)
  return config_lib.variant(config, variant)
