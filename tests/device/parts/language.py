"""A large language model's training step, built from a config as a run is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.engine import counting
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib


class Sizes(NamedTuple):
  """Sizes of a step.

  Attributes:
    student: options of the student, a `llama`.
    teacher: likewise.
    vocabulary: V.
    batch: rows.
    length: N.
  """

  student: dict
  teacher: dict
  vocabulary: int
  batch: int
  length: int


# The teacher has 1.2 billion parameters beside the vocabulary's.
FULL = Sizes(
    dict(width=1024, depth=12, heads=8), dict(width=2048, depth=24, heads=16),
    128_256, 8, 2048)
# The teacher's blocks are looped over, as those of the large one are.
TINY = Sizes(
    dict(width=16, depth=2, heads=2), dict(width=32, depth=14, heads=4),
    128, 2, 64)


def sizes(tiny, length=None):
  """Returns the sizes, of as many tokens whatever the length is."""
  found = TINY if tiny else FULL
  if length is None:
    return found
  return found._replace(
      length=length, batch=max(found.batch * found.length // length, 1))


def config_of(size, *, features=False, attention=False):
  """Returns the config of a step."""
  config = config_lib.base()
  config.batch_size = size.batch
  config.data.name = 'synthetic'
  config.data.options = dict(
      kind='tokens', length=size.length, vocabulary=size.vocabulary)
  for side in ('student', 'teacher'):
    config[side].model = 'llama'
    config[side].options = dict(getattr(size, side))
    config[side].precision = 'bfloat16'
  config.distillation.temperature = 1.0
  config.distillation.use_feature_matching = features
  config.distillation.use_attention_transfer = attention
  config_lib.validate(config)
  return config


def batch_of(size):
  """Returns a batch of full rows: NumPy arrays."""
  generator = np.random.default_rng(0)
  tokens = generator.integers(
      0, size.vocabulary, (size.batch, size.length)).astype(np.int32)
  labels = np.full_like(tokens, -100)
  labels[:, :-1] = tokens[:, 1:]
  return base.Batch(tokens, np.ones(tokens.shape, bool), labels)


class Step:
  """A compiled step with everything it is called with.

  Attributes:
    program: what was built.
    compiled: the executable.
    planned: bytes as `--mode=plan` adds them up.
    counted: FLOPs of the step as it is written.
    frozen: the teacher.
    batch: on the device.
    losses: of the steps taken.
  """

  def __init__(self, config, batch, *, frozen: Any = None, num_classes,
               make_teacher=None):
    mesh = mesh_lib.build_mesh(config.mesh, jax.devices()[:1])
    spec = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch))
    self.program = program_lib.build_program(
        config, spec=spec, num_classes=num_classes, mesh=mesh,
        has_teacher=True)
    split = jax.sharding.NamedSharding(mesh, mesh_lib.BATCH_SPEC)
    self.batch = jax.device_put(batch, split)
    abstract = mesh_lib.abstract(spec, jax.tree.map(lambda _: split, spec))
    traced = self.program.train_step.trace(
        self.program.abstract_state, self.program.abstract_frozen, abstract)
    counted = counting.count(traced.jaxpr, 1)
    self.counted, self.open_loops = counted.flops, counted.open_loops
    self.compiled = traced.lower().compile()
    self.planned = planned_bytes(self.compiled)
    self.frozen = frozen
    if frozen is None:
      self.frozen = (make_teacher or init_teacher)(self.program, batch)
    self.state, self.losses = None, []

  def start(self):
    """Makes the state of step 0."""
    self.state = self.program.init(jax.random.key(0))
    return self

  def __call__(self, steps=1):
    """Takes some steps; returns the last loss."""
    for _ in range(steps):
      self.state, metrics = self.compiled(self.state, self.frozen, self.batch)
    return metrics['loss']

  def forget(self):
    """Frees the state."""
    self.state = None


def planned_bytes(compiled):
  """Returns the bytes that a program needs, as `haikd.plan` adds them up."""
  stats = compiled.memory_analysis()
  return (stats.argument_size_in_bytes + stats.output_size_in_bytes -
          stats.alias_size_in_bytes + stats.temp_size_in_bytes +
          stats.generated_code_size_in_bytes)


def init_teacher(program, batch):
  """Returns a random teacher in the dtype it computes in."""
  teacher, abstract = program.objective.teacher, program.abstract_frozen
  one = jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)

  @jax.jit
  def init():
    made = base.Variables(*teacher.init(jax.random.key(1), one))
    return jax.tree.map(lambda x, y: x.astype(y.dtype), made, abstract)

  return jax.device_put(init(), mesh_lib.shardings_of(abstract))


def model_flops(program, batch):
  """Returns what the networks themselves take in a step, nothing twice.

  Args:
    program: of the step.
    batch: the batch.

  Returns:
    `teacher`, of its forward pass, and `student`, three times its own.
  """
  objective, state = program.objective, program.abstract_state

  def forward(network, variables):

    def run(variables, batch):
      logits = network.infer(variables, batch).logits
      return (logits.materialise()
              if isinstance(logits, base.LinearLogits) else logits)

    jaxpr = jax.make_jaxpr(run)(variables, batch)
    return counting.count(jaxpr, 1).flops

  own = base.Variables(state.params.student, state.net_state)
  return dict(
      teacher=forward(objective.teacher, program.abstract_frozen),
      student=3 * forward(objective.student, own))


def utilisation(flops, seconds, peak):
  """Returns the part of the peak that the networks' products use.

  Args:
    flops: from `model_flops`.
    seconds: of a step.
    peak: operations a second.

  Returns:
    `all`, of both networks, and `student`, without the teacher's forward pass.
  """
  return dict(
      all=(flops['teacher'] + flops['student']) / (seconds * peak),
      student=flops['student'] / (seconds * peak))
