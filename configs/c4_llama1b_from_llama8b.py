"""C4: a Llama with 1.5 billion parameters learns from Llama 3 8B.

  python -m haikd.launch --config=configs/c4_llama1b_from_llama8b.py \
      --workdir=DIR --config.data.source_dir=TOKENS \
      --config.teacher.init=TEACHER

TOKENS holds `train.npy`, `validation.npy` and `test.npy`: concatenated ids of
the Llama 3 tokenizer, as `numpy.save('train.npy', ids.astype('uint32'))` writes
them. TEACHER is a workdir that holds the teacher's weights.

Estimated cost: a step takes 512 rows of 2048 tokens, 1.05 million tokens. The
run takes 31 billion tokens, 20 for each parameter of the student. With 6
operations per parameter and token for the student and 2 for the teacher, that
is 7.8e20 operations, not counting attention maps: some 2700 hours of one TPU
v5e chip at 40 % of its peak. `--mode=plan` says beforehand what fits where.

We have not run it, and no result is known. The evaluation prints the teacher's
cross-entropy on the test split, which is what the student can approach.
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

  # The shape of Llama 3.2 1B, but its unembedding is not tied to its embedding.
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

  # Text is sampled from the distribution itself, so the student should learn
  # that. A higher temperature would put the weight on the 128,000 tokens that
  # do not come next.
  config.distillation.temperature = 1.0
  config.distillation.alpha = 0.9
  return config_lib.variant(config, variant)
