"""Which processes a run has, and which of them this one is."""

import os
import re
from typing import NamedTuple, Optional

from haikd.core import checks
from haikd.core import jax_internals

# What launch/local.sh sets in place of the flags.
COORDINATOR, NUM_PROCESSES, PROCESS_ID = VARIABLES = (
    'HAIKD_COORDINATOR', 'HAIKD_NUM_PROCESSES', 'HAIKD_PROCESS_ID')

_TIMEOUT = 300  # Seconds to wait for the name of process 0.


class Cluster(NamedTuple):
  """One process's place among all.

  Attributes:
    coordinator: `host:port` of process 0.
    num_processes: how many there are, 2 or more.
    process_id: which one this is.
    local_device_ids: the GPUs to use; None for all there are.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: Optional[list[int]] = None


def find(coordinator: Optional[str] = None,
         num_processes: Optional[int] = None,
         process_id: Optional[int] = None) -> Optional[Cluster]:
  """Returns the processes that there are.

  Those of the arguments; else those of the environment variables
  `HAIKD_COORDINATOR`, `HAIKD_NUM_PROCESSES` and `HAIKD_PROCESS_ID`; else what
  JAX finds out about a TPU pod, GKE, Slurm or Open MPI.

  Args:
    coordinator: `host:port` that process 0 listens on and all can reach.
    num_processes: how many there are; 1 alone looks for no others.
    process_id: which one this is, from 0.

  Returns:
    A Cluster, or None if this process is alone.

  Raises:
    ConfigError: some of the three are missing or wrong, or the cluster does not
      say what it has to.
  """
  given = coordinator, num_processes, process_id
  if given == (None, None, None):
    given = _from_environment()
  if given == (None, None, None):
    return _detect()
  return _check(*given)


def _from_environment():
  coordinator, *numbers = (os.environ.get(name) for name in VARIABLES)
  try:
    return coordinator, *(None if x is None else int(x) for x in numbers)
  except ValueError as err:
    raise checks.ConfigError(
        f'cluster.find: {NUM_PROCESSES} and {PROCESS_ID} must be integers; got '
        f'{numbers[0]!r}, {numbers[1]!r}. Correct or unset them.') from err


def _check(coordinator, num_processes, process_id):
  """Returns the cluster that a user describes."""
  if num_processes == 1:
    return None
  got = (f'coordinator={coordinator!r}, num_processes={num_processes}, '
         f'process_id={process_id}')
  if None in (coordinator, num_processes, process_id):
    raise checks.ConfigError(
        'cluster.find: coordinator, num_processes and process_id must be given '
        f'together; got {got}. Give all three, or none.')
  if not re.fullmatch(r'\S+:\d+', coordinator):
    raise checks.ConfigError(
        f'cluster.find: coordinator must be host:port of process 0; got {got}. '
        'Write it as in 10.0.0.1:8476.')
  if not 0 <= process_id < num_processes:
    raise checks.ConfigError(
        'cluster.find: process_id must be from 0 to num_processes - 1; got '
        f'{got}. Number the processes from 0.')
  return Cluster(coordinator, num_processes, process_id)


def _detect():
  """Returns the cluster that JAX finds this process in, or None."""
  try:
    for kind in jax_internals.cluster_kinds():
      if _may_be(kind) and kind.is_env_present():
        return _ask(kind)
  except Exception as err:  # Of metadata servers and other people's variables.
    raise checks.ConfigError(
        'cluster.find: the other processes of this cluster must be found; got '
        f'{checks.describe(err)}. Give --coordinator, --num_processes and '
        '--process_id, or --num_processes=1 for this one alone.') from err
  return None


def _may_be(kind):
  # A Kubernetes pod that is no part of a job has no job that could be asked.
  in_job = 'JOB_COMPLETION_INDEX' in os.environ
  return not kind.opt_in_only_method and (
      in_job or not jax_internals.is_kubernetes(kind))


def _ask(kind):
  count = kind.get_process_count()
  if count == 1:
    return None
  port = os.environ.get('JAX_COORDINATOR_PORT')
  return Cluster(
      kind.get_coordinator_address(
          timeout_secs=_TIMEOUT, override_coordinator_port=port), count,
      kind.get_process_id(), _gpus(kind.get_local_process_id()))


def _gpus(local):
  """Returns the GPU of a task, where tasks share a machine and all its GPUs.

  Args:
    local: the number of this task on its machine, or None.

  Returns:
    `[local]`; None if the task is alone there or has been given its own.
  """
  tasks = os.environ.get('SLURM_STEP_TASKS_PER_NODE') or os.environ.get(
      'OMPI_COMM_WORLD_LOCAL_SIZE') or ''
  alone = re.fullmatch(r'1(\(x\d+\))?', tasks)
  has_own = re.fullmatch('[^,]+', os.environ.get('CUDA_VISIBLE_DEVICES', ''))
  return None if local is None or alone or has_own else [local]
