"""One training step of each family of models, built as a run builds it."""

import jax
import jax.numpy as jnp
import numpy as np
from parts import compare

from haikd import config as config_lib
from haikd.core import base
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib

_IMAGES, _TEXT, _CLASSES = (8, 8, 8, 1), (4, 16), 20
_DECODER = dict(width=16, depth=2, heads=2), dict(width=32, depth=4, heads=4)

# By family: options of the student and of the teacher, which is of the same
# family, the shape of the inputs, and whether layers are matched too.
FAMILIES = dict(
    mlp=(dict(hidden=(16,)), dict(hidden=(32, 32)), _IMAGES, False),
    convnet=(dict(channels=(8,)), dict(channels=(8, 16)), _IMAGES, False),
    resnet=(dict(blocks=(1, 1), channels=(8, 16), small_images=True),
            dict(blocks=(1, 1), channels=(16, 32), small_images=True), _IMAGES,
            False),
    vit=(dict(patch_size=2, width=16, depth=2, heads=2),
         dict(patch_size=2, width=32, depth=4, heads=4), _IMAGES, True),
    gpt2=(*_DECODER, _TEXT, True),
    bert=(*(dict(x, head='masked_lm', vocabulary=_CLASSES) for x in _DECODER),
          _TEXT, True),
    llama=(*_DECODER, _TEXT, True),
)


def check(family, dtype, exact):
  """Returns a function of (report, name) that adds a family's result.

  Args:
    family: a key of FAMILIES.
    dtype: what both networks compute in.
    exact: a dict in which what the CPU gives in float32 is kept, by family.
  """

  def run(report, name):
    device, cpu = compare.devices()
    step = _Step(family, dtype, device)
    on_cpu = _Step(family, dtype, cpu)
    start = on_cpu.start()
    reference = on_cpu(start)
    once, again = step(start), step(start)
    tolerance, values = compare.FLOAT32, {}
    if dtype == 'float32':
      exact[family] = reference
    else:
      # As far from float32 as the CPU is, and what rounding adds.
      if family not in exact:
        exact[family] = _Step(family, 'float32', cpu)(start)
      own, _ = compare.distance(reference, exact[family])
      tolerance = 2 * own + compare.BFLOAT16
      reference = exact[family]
      values['cpu_error'] = own
    error, where = compare.distance(once, reference)
    finite = compare.is_finite(once)
    apart = compare.unequal(once, again)
    if apart:
      values['unequal'] = apart[:8]
    report.add(
        name, ok=error <= tolerance and finite, error=error,
        tolerance=tolerance, worst=where, finite=finite, bitwise=not apart,
        **values)

  return run


class _Step:
  """A step of a family in some precision on one device."""

  def __init__(self, family, dtype, device):
    config, self.batch = _config(family, dtype)
    mesh = mesh_lib.build_mesh(config.mesh, [device])
    self._place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    self.program = program_lib.build_program(
        config, spec=jax.eval_shape(lambda: jax.tree.map(
            jnp.asarray, self.batch)),
        num_classes=_CLASSES, mesh=mesh, has_teacher=True)

  def start(self):
    """Returns a state and a teacher, as NumPy arrays."""
    state = jax.device_get(self.program.init(jax.random.key(0)))
    init = jax.jit(self.program.objective.teacher.init)
    teacher = as_if_trained(init(jax.random.key(1), self.batch))
    return state, jax.device_get(base.Variables(*teacher))

  def __call__(self, start):
    """Takes a step; returns the loss and the gradient, up to a factor."""
    state, teacher = start
    state = jax.device_put(state, mesh_lib.shardings_of(
        self.program.abstract_state))
    frozen = self.program.freeze(jax.device_put(teacher, self._place))
    batch = jax.device_put(self.batch, self._place)
    state, metrics = self.program.train_step(state, frozen, batch)
    # Adam's first moment is a tenth of the gradient after the first step.
    moments = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if '.mu' in jax.tree_util.keystr(path)
    }
    if not moments:
      raise ValueError('the optimizer keeps no first moment')
    return compare.to_numpy(dict(loss=metrics['loss'], gradient=moments))


def as_if_trained(tree):
  """Returns a network's arrays, moving variances 1 and not 0.

  Args:
    tree: `{module: {name: array}}`, or several.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.ones_like(x)
      if 'var_ema' in jax.tree_util.keystr(path) and
      'average' in jax.tree_util.keystr(path[-1:]) else x, tree)


def _config(family, dtype):
  student, teacher, shape, matching = FAMILIES[family]
  config = config_lib.base()
  config.batch_size = shape[0]
  for side, options in (('student', student), ('teacher', teacher)):
    config[side].model, config[side].options = family, options
    config[side].precision = dtype
  config.distillation.use_feature_matching = matching
  config.distillation.use_attention_transfer = matching
  config_lib.validate(config)
  return config, _batch(shape)


def _batch(shape):
  generator = np.random.default_rng(0)
  if len(shape) == 4:
    return base.Batch(
        generator.random(shape, np.float32), np.ones(shape[0], bool),
        generator.integers(0, _CLASSES, shape[0]).astype(np.int32))
  lengths = np.linspace(shape[1], 2, shape[0]).astype(int)
  mask = np.arange(shape[1]) < lengths[:, None]
  tokens = generator.integers(0, _CLASSES, shape).astype(np.int32)
  labels = np.where(mask, np.roll(tokens, -1, axis=1), -100)
  return base.Batch(np.where(mask, tokens, 0), mask, labels.astype(np.int32))
