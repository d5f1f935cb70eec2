"""Compiles what a training will call, while it does something else.

The first step is compiled while the state is made or read, and evaluation while
the first steps are taken.
"""

from collections.abc import Iterator
from concurrent import futures
import contextlib
from typing import Any

from haikd import config as config_lib
from haikd.data import pipeline
from haikd.engine import abstract
from haikd.engine import program as program_lib
from haikd.processes import distributed
from haikd.processes import watchdog
from haikd.storage import checkpoint
from haikd.storage import paths


class Ahead:
  """A function of `jax.jit` that is being compiled for some arguments.

  Args:
    function: made by `jax.jit`.
    arguments: ShapeDtypeStructs with shardings.
    pool: compiles it.
  """

  def __init__(self, function: Any, arguments: tuple[Any, ...],
               pool: futures.Executor):
    self._function = function
    self._compiled = pool.submit(self._compile, arguments)

  def __call__(self, *arguments: Any) -> Any:
    """Calls the function, once it is compiled."""
    if not self._compiled.done():
      with watchdog.during(watchdog.COMPILATION):
        self._compiled.result()
    try:
      return self._compiled.result()(*arguments)
    except (TypeError, ValueError):  # They are others, as in a later stage.
      return self._function(*arguments)

  def _compile(self, arguments):
    try:
      return self._function.lower(*arguments).compile()
    except Exception:  # The call says what is wrong.
      return self._function


@contextlib.contextmanager
def pool() -> Iterator[futures.Executor]:
  """Yields a thread that compiles; what waits for it at the end is dropped."""
  executor = futures.ThreadPoolExecutor(1, thread_name_prefix='compiles')
  try:
    yield executor
  finally:
    executor.shutdown(wait=False, cancel_futures=True)


def start(config: config_lib.ConfigDict, program: program_lib.Program,
          data: pipeline.Data, workdir: paths.Path,
          executor: futures.Executor) -> program_lib.Program:
  """Returns a program whose functions are being compiled, in their order.

  Several processes compile when they call, all at the same time.

  Args:
    config: of the training.
    program: likewise.
    data: what it is trained on.
    workdir: of its checkpoints.
    executor: from `pool`.
  """
  taken = checkpoint.steps_taken(workdir)
  if distributed.is_many() or taken >= config.steps:
    return program
  ahead = lambda function, *arguments: Ahead(function, arguments, executor)
  batch_of = lambda spec: abstract.batch_of(spec, program.mesh)
  number = program.stage_of(taken + 1)
  stage = program.stages[number]
  state = stage.abstract_state
  step = ahead(stage.train_step, state, stage.abstract_frozen,
               batch_of(data.spec))
  return program._replace(
      stages=(*program.stages[:number], stage._replace(train_step=step),
              *program.stages[number + 1:]),
      eval_step=ahead(
          program.eval_step, program_lib.trained_network(state),
          program.abstract_frozen,
          batch_of(data.evaluation_spec(config.evaluation.split))),
      not_finite=ahead(program.not_finite, state))
