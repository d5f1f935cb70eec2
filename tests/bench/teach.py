"""How much longer recording a teacher takes than its forward pass alone.

  taskset -c 0 python tests/bench/teach.py --gguf=FILE --text=data/austen

The step of --mode=teach against one that returns the logits, for four rows of
288 tokens; and what a shard's records take on the host beside it. Printed are
medians of the CPU time of rounds that alternate, with the range of their ratio.
"""

import argparse
import statistics
import time

import jax
import numpy as np
import record_kinds

from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import record
from haikd.teacher_records import sampled


def steps(trainee, codec):
  """Returns the forward pass and the step that records, compiled."""
  program = trainee.program
  teacher, mesh = program.compared.teacher, program.mesh
  gather = collectives.build_gather(mesh)
  rows = mesh_lib.BATCH_SPEC
  specs = jax.tree.map(lambda x: x.sharding.spec, program.abstract_frozen)
  forward = jax.jit(collectives.over_shards(
      lambda frozen, batch: teacher.infer(
          frozen, batch, gather).logits.materialise(),
      mesh, in_specs=(specs, rows), out_specs=rows))
  return forward, record.build_step(program, codec, None)


def seconds(function):
  start = time.process_time()
  jax.block_until_ready(function())
  return time.process_time() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--gguf', required=True, help='the teacher')
  parser.add_argument('--text', required=True, help='folder with train.jsonl')
  parser.add_argument('--rounds', type=int, default=10)
  args = parser.parse_args()
  trainee = record_kinds.build(args.gguf, args.text)
  classes = trainee.data.num_classes
  codec = sampled.Codec(classes, exact=16, draws=32, bits=8, temperature=1.0)
  forward, step = steps(trainee, codec)
  frozen, batch = trainee.start('teacher').network, next(trainee.data.train())
  uniform = np.random.default_rng(0).random((*batch.mask.shape, 1), np.float32)
  batch, uniform = collectives.shard_batch(
      trainee.program.mesh, (batch, uniform))
  functions = dict(forward=lambda: forward(frozen, batch),
                   recorded=lambda: step(frozen, batch, uniform))
  for function in functions.values():
    seconds(function)
  times = {name: [] for name in functions}
  for _ in range(args.rounds):
    for name, function in functions.items():
      times[name].append(seconds(function))
  kept = {name: np.asarray(x).reshape(-1, *x.shape[2:])
          for name, x in functions['recorded']().items()}
  start = time.process_time()
  codec.encode(kept, 0)
  encoded = time.process_time() - start
  ratios = sorted(np.divide(times['recorded'], times['forward']))
  print(f'{classes:,} classes, forward '
        f'{statistics.median(times["forward"]):.3f} s, recorded '
        f'{statistics.median(times["recorded"]):.3f} s, ratio '
        f'{statistics.median(ratios):.3f} ({ratios[0]:.3f} to '
        f'{ratios[-1]:.3f}); encoded in {1e3 * encoded:.1f} ms')


if __name__ == '__main__':
  main()
