"""Whether sampled records of a whole split are off: a check over all its rows.

  python tests/bench/record_bias.py --config=configs/austen_records.py:sampled

For each copy of the records that the config names, the mean over positions of
sum_v p'_v log p_v + H(p), which is 0 on average if p' is an unbiased estimate
of the live teacher's p, with its standard error; and the share of the
probability that tokens have which are likely, or less likely, over all rows.
"""

import argparse

import jax
import numpy as np

from haikd import config as config_lib
from haikd.config import file as config_file
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.run import resolve
from haikd.run import trainees
from haikd.teacher_records import records as records_lib
from haikd.teacher_records import rows as rows_lib

ROWS = 4
BANDS = (0, 16, 128, 1024, 4096)  # Of tokens, from the likeliest on.


def build(config):
  """Returns the student with its live teacher."""
  live = config.copy_and_resolve_references()
  live.teacher.records = config_lib.ConfigDict()
  live.baseline = False
  live = resolve.from_pretrained(live)
  return trainees.build(live, mesh_lib.build_mesh(live.mesh))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', required=True)
  config = config_file.load(parser.parse_args().config)
  records = records_lib.Records(config.teacher.records.path)
  trainee = build(config)
  teacher = trainee.program.compared.teacher
  frozen = trainee.start('teacher').network
  log_probs = jax.jit(lambda batch: jax.nn.log_softmax(
      teacher.infer(frozen, batch).logits.materialise()))
  split = trainee.config.data.train
  copies, classes = records.recipe.copies, records.recipe.classes
  errors = [[] for _ in range(copies)]
  live, drawn = np.zeros(classes), np.zeros((copies, classes))
  for start in range(0, trainee.data.sizes[split], ROWS):
    batch = trainee.data.pick(
        split, indices=np.arange(start, start + ROWS), batch_size=ROWS,
        shards=1, process_index=0, process_count=1)[0]
    keep = rows_lib.kept(batch, records.recipe.axes)
    log_p = np.asarray(log_probs(
        collectives.shard_batch(trainee.program.mesh, batch)))
    p = np.exp(log_p.astype(np.float64))
    live += p[keep].sum(0)
    entropy = -np.sum(p * log_p, -1)
    for copy in range(copies):
      ids, weights, _ = records.join(batch, np.full(ROWS, copy)).teacher
      np.add.at(drawn[copy], ids[keep], weights[keep].astype(np.float64))
      of_ids = np.take_along_axis(log_p, ids, -1)
      errors[copy].append((np.sum(weights * of_ids, -1) + entropy)[keep])
  for copy in range(copies):
    values = np.concatenate(errors[copy])
    error = values.std() / np.sqrt(len(values))
    print(f'copy {copy}: {values.mean():+.5f}, standard error {error:.5f}, '
          f'{len(values):,} positions')
  order = np.argsort(-live)
  for first, last in zip(BANDS, (*BANDS[1:], classes)):
    band = order[first:last]
    shares = drawn[:, band].sum(1) / drawn.sum(1)
    print(f'tokens {first} to {last}: live '
          f'{live[band].sum() / live.sum():.5f}, drawn {shares.round(5)}')


if __name__ == '__main__':
  main()
