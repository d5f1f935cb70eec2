"""Compiles what a job will call, while it does something else.

A step is compiled while its first state is made or read or another network is
trained, and evaluation while the first steps are taken.
"""

from collections.abc import Iterator
from concurrent import futures
import contextlib
from typing import Any

from haikd.core import garbage
from haikd.engine import abstract
from haikd.engine import program as program_lib
from haikd.processes import distributed
from haikd.processes import leaving
from haikd.processes import watchdog
from haikd.run import programs
from haikd.run import trainees
from haikd.storage import checkpoint
from haikd.storage import paths


class Ahead:
  """A function of `jax.jit` that is being compiled for some arguments.

  Args:
    function: made by `jax.jit`.
    arguments: ShapeDtypeStructs with shardings.
    pool: compiles it.
    title: of the network.
  """

  def __init__(self, function: Any, arguments: tuple[Any, ...],
               pool: futures.Executor, title: str = ''):
    self._function, self._pool = function, pool
    try:  # Traced here: settings of JAX and Haiku belong to a thread.
      with programs.of(title), garbage.uncollected():
        lowered = function.lower(*arguments)
    except Exception:  # The call says what is wrong.
      lowered = None

    def compile_it():
      with programs.of(title):
        return lowered.compile() if lowered else function

    self._compiled = pool.submit(compile_it)

  def __call__(self, *arguments: Any) -> Any:
    """Calls the function, once it is compiled."""
    if self._compiled.cancel():  # It still waits for others: no need to.
      return self._function(*arguments)
    if not self._compiled.done():
      with watchdog.during(watchdog.COMPILATION):
        self._compiled.exception()
    if self._compiled.exception():
      return self._function(*arguments)
    try:
      return self._compiled.result()(*arguments)
    except (TypeError, ValueError):
      # It was compiled for other arguments, such as those of another stage.
      return self._function(*arguments)

  def trace(self, *arguments: Any) -> Any:
    """Returns the function as it was traced for some arguments."""
    return self._function.trace(*arguments)

  def finish(self) -> futures.Future:
    """Returns what is done once the pool has nothing more to compile."""
    return self._pool.submit(lambda: None)


@contextlib.contextmanager
def pool() -> Iterator[futures.Executor]:
  """Yields a thread that compiles; what waits for it at the end is dropped.

  A compilation that runs goes on. `leaving.leave` ends a process without it.
  """
  executor = futures.ThreadPoolExecutor(
      1, thread_name_prefix=leaving.EXPENDABLE)
  try:
    yield executor
  finally:
    executor.shutdown(wait=False, cancel_futures=True)


def start(trainee: trainees.Trainee, workdir: paths.Path,
          executor: futures.Executor) -> trainees.Trainee:
  """Returns a network whose functions are being compiled, in their order.

  Several processes compile when they call, all at the same time.

  Args:
    trainee: a network to be trained.
    workdir: of the job.
    executor: from `pool`.
  """
  config, program, data = trainee.config, trainee.program, trainee.data
  taken = checkpoint.steps_taken(paths.as_path(workdir) / trainee.folder)
  if distributed.is_many() or taken >= config.steps:
    return trainee
  ahead = lambda function, *arguments: Ahead(
      function, arguments, executor, trainee.title)
  batch_of = lambda spec: abstract.batch_of(spec, program.mesh)
  number = program.stage_of(taken + 1)
  stage = program.stages[number]
  state = stage.abstract_state
  step = ahead(stage.train_step, state, stage.abstract_frozen,
               batch_of(data.spec))
  stages = (*program.stages[:number], stage._replace(train_step=step),
            *program.stages[number + 1:])
  not_finite = ahead(program.not_finite, state)  # Of every save.
  return trainee._replace(program=program._replace(
      stages=stages,
      not_finite=not_finite,
      eval_step=ahead(
          program.eval_step, program_lib.trained_network(state),
          program.abstract_frozen,
          batch_of(data.evaluation_spec(config.evaluation.split)))))
