"""Compiles what a job will call, while it does something else.

A step is compiled while its first state is made or read or another network is
trained, and evaluation while the first steps are taken. Tracing keeps the main
thread busy: what is not needed yet is traced once the device has a step to
compute, or while the main thread would wait for one that is compiled.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import contextlib
from typing import Any, Optional

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

_SOON = 0.3  # Seconds.


class Pool:
  """A thread that compiles, and what the main thread is to trace for it.

  Attributes:
    begun: by the id of its stage, a step that is compiled before its network is
      started.

  Args:
    executor: of one thread.
  """

  def __init__(self, executor: futures.Executor):
    self.begun: dict[int, 'Ahead'] = {}
    self._executor = executor
    self._later: collections.deque = collections.deque()

  def submit(self, function: Callable, *arguments: Any) -> futures.Future:
    """Calls a function in the thread, after those given before."""
    return self._executor.submit(function, *arguments)

  def later(self, function: Callable[[], None]) -> None:
    """Keeps a function for `catch_up`."""
    self._later.append(function)

  def catch_up(self, until: Optional[futures.Future] = None) -> None:
    """Calls here what was kept, in its order.

    Args:
      until: what, once it is done, ends this; None to call everything.
    """
    while self._later and not (until and until.done()):
      with watchdog.during(watchdog.COMPILATION):
        self._later.popleft()()


class Ahead:
  """A function of `jax.jit` that is being compiled for some arguments.

  Args:
    function: made by `jax.jit`.
    arguments: ShapeDtypeStructs with shardings.
    pool: compiles it.
    title: of the network.
    later: whether it is traced only once another function is called a second
      time, or while that is still compiled.
  """

  def __init__(self, function: Any, arguments: tuple[Any, ...],
               pool: Pool, title: str = '', later: bool = False):
    self._function, self._arguments = function, arguments
    self._pool, self._title = pool, title
    self._compiled: Optional[futures.Future] = None
    self._is_called = False
    if later:
      pool.later(self._begin)
    else:
      self._begin()

  def __call__(self, *arguments: Any) -> Any:
    """Calls the function, once it is compiled."""
    if self._is_called:  # The device computes what the first call gives.
      self._pool.catch_up()
    self._is_called = True
    # If it still waits for others, there is no need to.
    if self._compiled is None or self._compiled.cancel():
      return self._function(*arguments)
    if not self._compiled.done():
      with watchdog.during(watchdog.COMPILATION):
        # What comes from the cache is not worth tracing another for.
        futures.wait([self._compiled], _SOON)
        self._pool.catch_up(until=self._compiled)
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
    self._pool.catch_up()
    return self._pool.submit(lambda: None)

  def _begin(self):
    """Traces the function, and has it compiled."""
    if self._is_called:  # It was compiled for that.
      return
    try:  # Traced here: settings of JAX and Haiku belong to a thread.
      with programs.of(self._title), garbage.uncollected():
        lowered = self._function.lower(*self._arguments)
    except Exception:  # The call says what is wrong.
      lowered = None

    def compile_it():
      with programs.of(self._title):
        return lowered.compile() if lowered else self._function

    self._compiled = self._pool.submit(compile_it)


@contextlib.contextmanager
def pool() -> Iterator[Pool]:
  """Yields a thread that compiles; what waits for it at the end is dropped.

  A compilation that runs goes on. `leaving.leave` ends a process without it.
  """
  executor = futures.ThreadPoolExecutor(
      1, thread_name_prefix=leaving.EXPENDABLE)
  try:
    yield Pool(executor)
  finally:
    executor.shutdown(wait=False, cancel_futures=True)
    garbage.end_job()


def begin(networks: Iterable[trainees.Trainee], workdir: paths.Path,
          compiler: Pool) -> None:
  """Has the step compiled that is taken first, before its network is started.

  Args:
    networks: in the order in which they are trained.
    workdir: of the job.
    compiler: from `pool`.
  """
  for trainee in networks:
    taken = _steps_taken(trainee, workdir)
    if not distributed.is_many() and taken < trainee.config.steps:
      stage = trainee.program.stages[trainee.program.stage_of(taken + 1)]
      compiler.begun[id(stage)] = _step(trainee, stage, compiler)
      return


def start(trainee: trainees.Trainee, workdir: paths.Path, compiler: Pool,
          before: Optional[trainees.Trainee] = None) -> trainees.Trainee:
  """Returns a network whose functions are being compiled, in their order.

  Several processes compile when they call, all at the same time.

  Args:
    trainee: a network to be trained.
    workdir: of the job.
    compiler: from `pool`.
    before: a network that is trained before, if it has steps to take; this one
      is traced meanwhile. None if this one is the next.
  """
  config, program, data = trainee.config, trainee.program, trainee.data
  taken = _steps_taken(trainee, workdir)
  if distributed.is_many() or taken >= config.steps:
    return trainee
  waits = before is not None and (
      _steps_taken(before, workdir) < before.config.steps)
  number = program.stage_of(taken + 1)
  stage = program.stages[number]
  step = compiler.begun.pop(id(stage), None) or _step(
      trainee, stage, compiler, later=waits)
  stages = (*program.stages[:number], stage._replace(train_step=step),
            *program.stages[number + 1:])
  later = lambda function, *arguments: Ahead(
      function, arguments, compiler, trainee.title, later=True)
  state = stage.abstract_state
  not_finite = later(program.not_finite, state)  # Of every save.
  return trainee._replace(program=program._replace(
      stages=stages,
      not_finite=not_finite,
      eval_step=later(
          program.eval_step, program_lib.trained_network(state),
          program.abstract_frozen,
          abstract.batch_of(
              data.evaluation_spec(config.evaluation.split), program.mesh))))


def _step(trainee, stage, compiler, later=False):
  """Returns the step of a stage, which is being compiled."""
  batch = abstract.batch_of(trainee.data.spec, trainee.program.mesh)
  return Ahead(stage.train_step,
               (stage.abstract_state, stage.abstract_frozen, batch), compiler,
               trainee.title, later)


def _steps_taken(trainee, workdir):
  return checkpoint.steps_taken(paths.as_path(workdir) / trainee.folder)
