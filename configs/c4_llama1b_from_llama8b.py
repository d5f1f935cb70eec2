"""C4: a Llama of 1.5 billion parameters learns from Llama 3 8B.

  python -m haikd.launch --config=configs/c4_llama1b_from_llama8b.py \
      --workdir=DIR --config.data.source_dir=TOKENS \
      --config.teacher.init=TEACHER

TOKENS holds `train.npy`, `rules.npy` and `test.npy`: ids of the Llama 3
tokenizer end to end, as `numpy.save('train.npy', ids.astype('uint32'))` writes
them. TEACHER is a workdir that holds the teacher's weights.

Cost, by counting: a step is 512 rows of 2048 tokens, 1.05 million, and the run
31 billion, 20 for each parameter of the student. At 6 operations a parameter
and token for the student and 2 for the teacher that is 7.8e20, without those of
attention maps: some 2700 hours of a TPU v5e chip at two fifths of its peak.
`--mode=plan` says what fits on what before anybody pays.

Not run by us: no result is known. The teacher's own cross-entropy on the test
split, which the evaluation prints, is what the student can hope to come near.
"""

from haikd import config as config_lib


def get_config(variant=''):
  config = config_lib.base()
  config.steps = 30_000
  config.batch_size = 512
  config.log_every = 10
  config.checkpoint_every = 500
  config.data.name = 'tokens'
  config.data.options = dict(length=2048, vocabulary=128_256)
  config.evaluation.every = 1000
  config.evaluation.split = 'validation[:2048]'
  config.evaluation.batch_size = 512

  config.teacher.model = 'llama'
  config.teacher.precision = 'bfloat16'
  config.teacher.options = dict(
      width=4096,
      depth=32,
      heads=32,
      key_value_heads=8,
      hidden=14_336,
      rope_base=500_000.0)

  # The shape of Llama 3.2 1B, with logits of its own.
  config.student.model = 'llama'
  config.student.precision = 'bfloat16'
  config.student.remat = 'full'
  config.student.options = dict(
      width=2048,
      depth=16,
      heads=32,
      key_value_heads=8,
      hidden=8192,
      rope_base=500_000.0)
  config.optimizer.learning_rate = 3e-4
  config.optimizer.warmup_steps = 2000
  config.optimizer.final_fraction = 0.1
  config.optimizer.weight_decay = 0.1
  config.optimizer.clip_norm = 1.0
  config.optimizer.options = dict(b2=0.95)

  # A language model is sampled from as it is: the distribution itself is what
  # is to be learned, and a higher temperature would give the weight to the
  # 128,000 words that do not come next.
  config.distillation.temperature = 1.0
  config.distillation.alpha = 0.9
  return config_lib.variant(config, variant)
