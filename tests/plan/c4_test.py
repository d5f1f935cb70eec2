"""What the step of C4 computes and sends, against what it must on paper.

The teacher is Llama 3 8B, the student has 1.5 billion parameters; see
`published_sizes_test` for these. Per device and step, in rows of N = 2048
tokens, with bfloat16 on the way to a device and float32 on the way back:

  all-gather      2 bytes for each parameter of the teacher, once; 2 for each of
                  the student for its forward pass, and 2 once more for those in
                  blocks, which are computed again in the backward pass.
  reduce-scatter  4 bytes for each parameter of the student, once.

Every parameter can be split over 256 and 512 devices.
"""

import importlib.util
import pathlib

import jax
import pytest

from haikd.core import memory
from haikd.engine import counting
from haikd.engine import mesh as mesh_lib
from haikd.plan import chips
from haikd.plan import compiling
from haikd.plan import planning

CONFIG = (pathlib.Path(__file__).parents[2] / 'configs' /
          'c4_llama1b_from_llama8b.py')
N, VOCABULARY = 2048, 128_256
TEACHER, STUDENT = 8_030_261_248, 1_498_482_688
# Embedding, logits and the last norm: 2 V D + D.
ENDS = 2 * VOCABULARY * 2048 + 2048
GATHERED = 2 * TEACHER + 2 * STUDENT + 2 * (STUDENT - ENDS)
SCATTERED = 4 * STUDENT


def load():
  spec = importlib.util.spec_from_file_location('c4', CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def sums(traffic, kind):
  return (sum(x.payload for x in traffic if x.kind == kind),
          sum(x.wire for x in traffic if x.kind == kind))


@pytest.fixture(scope='module')
def counted():
  """The step as written, for 8 devices; nothing is compiled."""
  step = planning.build_step(load(), jax.devices())
  jaxpr = step.train_step.trace(step.state, step.frozen, step.batch).jaxpr
  return counting.count(jaxpr, step.mesh.size)


def test_step_sends_what_it_must_and_no_more(counted):
  assert {x.axes for x in counted.traffic if x.payload > 1e6} == {('fsdp',)}
  gathered, wire = sums(counted.traffic, 'all-gather')
  assert gathered == GATHERED and wire == GATHERED * 7 / 8
  scattered, wire = sums(counted.traffic, 'reduce-scatter')
  assert scattered == SCATTERED and wire == SCATTERED * 7 / 8
  # Counts, the sums of losses and the norm of the gradient.
  assert sums(counted.traffic, 'all-reduce')[0] < 100


def test_step_computes_what_it_must(counted):
  tokens = 512 * N / 8
  block = lambda d, hidden, kv: 2 * d * d + 2 * d * kv + 3 * d * hidden
  # Of a causal map, loops over a quarter of the rows each see 1/4, 2/4, 3/4
  # and all of the keys: 5/8. A product with a map is 2 N d a position.
  product = lambda d: 5 / 8 * 2 * N * d
  teacher = 32 * (2 * block(4096, 14_336, 1024) + 2 * product(4096))
  teacher += 2 * VOCABULARY * 4096
  student = 16 * 2 * block(2048, 8192, 512)
  # Forward, again without the last product, and twice that for the gradient.
  student = 4 * student - 16 * 2 * 2048 * 8192
  # Twice the scores and their use; in the backward pass scores once more, and
  # the gradients of maps, queries, keys and values.
  student += 16 * 9 * product(2048)
  student += 3 * 2 * VOCABULARY * 2048
  assert counted.flops == pytest.approx(tokens * (teacher + student), rel=1e-3)
  # The rule of thumb has no attention, and looks embeddings up by products.
  thumb = tokens * (6 * STUDENT + 2 * TEACHER)
  assert counted.flops == pytest.approx(thumb, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize('name', ('v5e:16x16', 'v5p:8x8x8'))
def test_pod_has_room_and_sends_what_it_must(name):
  pytest.importorskip('libtpu')
  compiling.prepare()
  topology = chips.parse_topology(name)
  devices = chips.find_devices(topology)
  chip = chips.chip_of(topology, devices)
  step = planning.build_step(load(), devices)
  compiled = compiling.compile_step(step)
  assert compiled.seconds < 300
  assert compiled.memory.peak() < chip.memory
  for tree, size in ((step.state.params, 4 * STUDENT),
                     (step.frozen.params, 2 * TEACHER)):
    held = memory.bytes_per_device(tree)
    assert held == pytest.approx(size / len(devices), rel=0.02)
  share = 1 - 1 / len(devices)
  traffic = compiled.schedule.traffic()
  assert {x.axes for x in traffic if x.payload > 1e6} == {(mesh_lib.FSDP,)}
  assert sums(traffic, 'all-gather')[1] == pytest.approx(
      GATHERED * share, rel=0.05)
  assert sums(traffic, 'reduce-scatter')[1] == pytest.approx(
      SCATTERED * share, rel=0.05)
  # The smallest matrix of the student is 2048 x 512, 4.2 MB.
  assert max(x.payload for x in compiled.schedule.collectives
             if x.kind == 'all-reduce') < 4 * 2048 * 512
