"""Compiles a step ahead of time and reads off what it takes."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import re
import sys
import tempfile
import time
from typing import Any, NamedTuple, Optional

import jax

from haikd.core import jax_internals
from haikd.engine import counting
from haikd.plan import schedule as schedule_lib
from haikd.run import programs

# libtpu reads these as it is loaded. Several processes that only compile may
# load it at once. Unless told of a TPU's host it searches for one, and prints.
_LIBTPU = {
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_MIN_LOG_LEVEL': '3',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TF_CPP_MIN_LOG_LEVEL': '3',
}
# The two forms of the compiler's message about too little memory.
_SHORT = (
    re.compile(r'Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm'),
    re.compile(r'\(([\d.]+[KMGT]?)\) exceeds available HBM '
               r'\(([\d.]+[KMGT]?)\)'),
)


class Other(NamedTuple):
  """A program beside the training step.

  Attributes:
    title: of the network.
    function: made by `jax.jit`.
    arguments: ShapeDtypeStructs with shardings.
  """

  title: str
  function: Any
  arguments: tuple[Any, ...]


class Step(NamedTuple):
  """A training step and its arguments, none of it on a device.

  Attributes:
    train_step: a function of `(state, frozen, batch)`, made by `jax.jit`.
    state: ShapeDtypeStructs with shardings, like the next two.
    frozen: the teacher, or None.
    batch: the global batch.
    mesh: the mesh of all shardings.
    others: what else a run compiles for it.
  """

  train_step: Any
  state: Any
  frozen: Any
  batch: Any
  mesh: jax.sharding.Mesh
  others: tuple[Other, ...] = ()


class Memory(NamedTuple):
  """Bytes of memory on each device.

  Attributes:
    arguments: state, teacher and batch.
    results: results that are not written over the arguments.
    scratch: what exists during the step only.
    code: the program.
  """

  arguments: float
  results: float
  scratch: float
  code: float

  def peak(self) -> float:
    """Returns the sum."""
    return sum(self)


class Compiled(NamedTuple):
  """What compiling a step told. Made by `compile_step`.

  Attributes:
    memory: None if the compiler refused for lack of it.
    missing: the bytes that were missing then; else 0.
    available: bytes that a program may use, if the compiler named them.
    counted: work and traffic of the step as written.
    schedule: collectives as compiled, or None if the program has no text.
    seconds: the time that compiling took.
  """

  memory: Optional[Memory]
  missing: float
  available: Optional[float]
  counted: counting.Counted
  schedule: Optional[schedule_lib.Schedule]
  seconds: float


def prepare(*, platform: str = 'cpu') -> None:
  """Sets the variables that the TPU compiler reads, unless they are set.

  Args:
    platform: what JAX itself may use meanwhile. It must not be a TPU of this
      machine, which the variables would mislead about its host.
  """
  for name, value in _LIBTPU.items():
    os.environ.setdefault(name, value)
  jax.config.update('jax_platforms', platform)


@contextlib.contextmanager
def quiet(debug: bool = False) -> Iterator[None]:
  """Hides what C++ writes to standard error.

  Args:
    debug: show it.

  Yields:
    Nothing.
  """
  if debug:
    yield
    return
  sys.stderr.flush()
  kept = os.dup(2)
  try:
    with open(os.devnull, 'w') as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def compile_step(step: Step, *, debug: bool = False) -> Compiled:
  """Compiles a step for the devices of its mesh, which need not be here.

  Args:
    step: the step.
    debug: show what the compiler writes to standard error.

  Returns:
    A Compiled, also if the compiler refused for lack of memory.

  Raises:
    Exception: whatever else tracing or compiling raises.
  """
  began = time.monotonic()
  traced = step.train_step.trace(step.state, step.frozen, step.batch)
  counted = counting.count(traced.jaxpr, step.mesh.size)
  with quiet(debug), tempfile.TemporaryDirectory() as folder:
    platform = step.mesh.devices.flat[0].platform
    options = {}
    if platform == 'tpu':  # `as_text` does not always work there.
      options = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
    try:
      # A cached program would not be dumped.
      with _without_cache():
        compiled = traced.lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as err:
      used = shortage(str(err))
      if used is None:
        raise
      missing, available = used
      return Compiled(None, missing, available, counted, None,
                      time.monotonic() - began)
    text = _dumped(folder) if options else compiled.as_text()
  schedule = None
  if text is not None:
    schedule = schedule_lib.read(
        text, dict(step.mesh.shape), between_slices(step.mesh))
  return Compiled(
      _memory(compiled.memory_analysis()), 0.0, None, counted, schedule,
      time.monotonic() - began)


def compile_others(step: Step, *, debug: bool = False) -> None:
  """Compiles what a run compiles beside its step; `run.programs` times it.

  What the compiler has no memory for is left out.

  Args:
    step: the step.
    debug: show what the compiler writes to standard error.
  """
  with quiet(debug), _without_cache():
    for other in step.others:
      with programs.of(other.title):
        lowered = other.function.lower(*other.arguments)
        try:
          lowered.compile()
        except jax.errors.JaxRuntimeError as err:
          if shortage(str(err)) is None:
            raise


def between_slices(mesh: jax.sharding.Mesh) -> tuple[str, ...]:
  """Returns the axes of a mesh that join slices of TPUs."""
  first = mesh.devices.flat[0]
  axes = []
  for place, name in enumerate(mesh.axis_names):
    index: list[Any] = [0] * mesh.devices.ndim
    index[place] = slice(None)
    if any(getattr(device, 'slice_index', 0) != getattr(
        first, 'slice_index', 0) for device in mesh.devices[tuple(index)]):
      axes.append(name)
  return tuple(axes)


def shortage(message: str) -> Optional[tuple[float, float]]:
  """Reads from the compiler's error how much memory is missing.

  Args:
    message: the message of the error.

  Returns:
    Bytes missing and bytes available; None if it is another error.
  """
  for form in _SHORT:
    if match := form.search(message):
      used, available = map(_number, match.groups())
      return used - available, available
  return None


def _number(text):
  scale = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}.get(text[-1], 1)
  return float(text.rstrip('KMGT')) * scale


def _memory(stats):
  return Memory(
      arguments=stats.argument_size_in_bytes,
      results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
      scratch=stats.temp_size_in_bytes,
      code=stats.generated_code_size_in_bytes)


@contextlib.contextmanager
def _without_cache():
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  jax_internals.forget_compilation_cache()
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    jax_internals.forget_compilation_cache()


def _dumped(folder):
  """Returns the text of the largest program that the compiler dumped."""
  files = sorted(pathlib.Path(folder).glob('*after_optimizations.txt'),
                 key=lambda path: path.stat().st_size)
  return files[-1].read_text(errors='replace') if files else None
