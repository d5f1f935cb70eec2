r"""How fast teacher and student encode texts, in turn in one process.

  python tests/bench/encode_time.py \
      --config=configs/sentences_minilm3_from_minilm6.py

Prints texts a second of either on the first batches of the test split, and the
ratio of their times: medians over rounds, with the range.
"""

import argparse
import statistics
import time

import jax

from haikd.config import file as config_file
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.run import resolve
from haikd.run import trainees


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', required=True)
  parser.add_argument('--rounds', type=int, default=7)
  flags = parser.parse_args()
  config = resolve.from_pretrained(config_file.load(flags.config))
  config.evaluation.final += '[:64]'
  mesh = mesh_lib.build_mesh(config.mesh)
  part = trainees.build(config, mesh)
  batch = collectives.shard_batch(
      mesh, next(iter(part.data.evaluation(config.evaluation.final))))
  networks = {}
  for title in ('teacher', 'student'):
    network = getattr(part.program.objective, title)
    weights = part.start(title).network
    encode = jax.jit(
        lambda weights, batch, network=network: network.apply(
            weights.params, weights.state, None, batch, is_training=False)[0]
        .logits)
    networks[title] = lambda encode=encode, weights=weights: (
        jax.block_until_ready(encode(weights, batch)))
    networks[title]()  # Compiles.
  times = {title: [] for title in networks}
  for _ in range(flags.rounds):
    for title, run in networks.items():
      start = time.perf_counter()
      run()
      times[title].append(time.perf_counter() - start)
  texts = batch.mask.size // batch.mask.shape[-1]
  for title, found in times.items():
    print(f'{title}: {texts / statistics.median(found):.0f} texts a second '
          f'of {batch.mask.shape[-1]} tokens')
  ratios = [one / two for one, two in zip(*times.values())]
  print(f'teacher / student: {statistics.median(ratios):.2f} '
        f'({min(ratios):.2f}-{max(ratios):.2f})')


if __name__ == '__main__':
  main()
