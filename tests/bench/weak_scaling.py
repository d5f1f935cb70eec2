"""Bound on the time of a step from 8 to 6,144 chips, at one row a chip.

  python tests/bench/weak_scaling.py [FOLDER]

Compiles the step of `configs/c4_llama1b_from_llama8b.py` for TPU v5p slices of
growing size, none of which has to be here, and writes `plan.json` for each and
`plan.png` to the folder, `runs/weak_scaling` by default. Needs
`pip install 'haikd[plan,report]'`; takes some six minutes on two cores.
"""

import pathlib
import sys

from haikd import plan
from haikd.config import file as config_file
from haikd.plan import picture
from haikd.plan import planning
from haikd.run import console

CONFIG = 'configs/c4_llama1b_from_llama8b.py'

# Chips along fsdp: all of them up to 512, over which the vocabulary and every
# width of the two networks divide; more are replicas.
SLICES = (('v5p:2x2x2', 8, 1), ('v5p:4x4x4', 64, 1), ('v5p:8x8x8', 512, 1),
          ('v5p:8x16x16', 512, 4), ('v5p:16x16x24', 512, 12))


def main() -> None:
  """Plans every slice, then prints one table and draws one picture."""
  folder = pathlib.Path(sys.argv[1] if sys.argv[1:] else 'runs/weak_scaling')
  estimates = []
  for topology, fsdp, replica in SLICES:
    config = config_file.load(CONFIG)
    config.batch_size = fsdp * replica
    config.mesh = dict(replica=replica, fsdp=fsdp, tensor=1)
    estimates += plan.plan(
        config, [topology], folder / topology.partition(':')[2], compiles=0)
  console.table(
      planning.rows(estimates), ['per chip', *(x.topology for x in estimates)])
  picture.plot_plans(folder, estimates)


if __name__ == '__main__':
  main()
