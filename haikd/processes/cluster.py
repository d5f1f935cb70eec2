"""Finds the processes of a run, and which of them this one is."""

import os
import re
from typing import NamedTuple, Optional

from haikd.core import checks
from haikd.core import jax_internals

# The variables that launch/local.sh sets in place of the flags.
COORDINATOR, NUM_PROCESSES, PROCESS_ID = VARIABLES = (
    'HAIKD_COORDINATOR', 'HAIKD_NUM_PROCESSES', 'HAIKD_PROCESS_ID')

_TIMEOUT = 300  # Seconds to wait for the address of process 0.


class Cluster(NamedTuple):
  """The processes of a run, as one of them sees them.

  Attributes:
    coordinator: `host:port` of process 0.
    num_processes: the number of processes, 2 or more.
    process_id: the index of this process, from 0.
    local_device_ids: the GPUs that this process uses; None for all.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: Optional[list[int]] = None


def find(coordinator: Optional[str] = None,
         num_processes: Optional[int] = None,
         process_id: Optional[int] = None) -> Optional[Cluster]:
  """Finds the processes of this run.

  They are given by the arguments; else by the environment variables
  `HAIKD_COORDINATOR`, `HAIKD_NUM_PROCESSES` and `HAIKD_PROCESS_ID`; else by the
  TPU pod, GKE, Slurm or Open MPI that JAX detects.

  Args:
    coordinator: `host:port` that process 0 listens on and all can reach.
    num_processes: the number of processes; 1 means that this one is alone.
    process_id: the index of this process, from 0.

  Returns:
    A Cluster, or None if this process is alone.

  Raises:
    ConfigError: some of the three are missing or wrong, or the detected cluster
      does not provide them.
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
        f'{NUM_PROCESSES} and {PROCESS_ID} must be integers; got '
        f'{numbers[0]!r}, {numbers[1]!r}. Correct or unset them.') from err


def _check(coordinator, num_processes, process_id):
  """Returns the cluster that the user has given, or None for one process."""
  if num_processes == 1:
    return None
  got = (f'coordinator={coordinator!r}, num_processes={num_processes}, '
         f'process_id={process_id}')
  if None in (coordinator, num_processes, process_id):
    raise checks.ConfigError(
        '--coordinator, --num_processes and --process_id must be given '
        'together; got '
        f'{got}. Give all three, or none.')
  if not re.fullmatch(r'\S+:\d+', coordinator):
    raise checks.ConfigError(
        f'--coordinator must be host:port of process 0; got {got}. Write it as '
        'in 10.0.0.1:8476.')
  if not 0 <= process_id < num_processes:
    raise checks.ConfigError(
        f'--process_id must be from 0 to num_processes - 1; got {got}. Number '
        'the processes from 0.')
  return Cluster(coordinator, num_processes, process_id)


def _detect():
  """Returns the cluster that JAX detects, or None."""
  try:
    for kind in jax_internals.cluster_kinds():
      if _may_be(kind) and kind.is_env_present():
        return _ask(kind)
  # Metadata servers and other programs' variables cause errors of any kind.
  except Exception as err:
    raise checks.ConfigError(
        'this cluster must tell JAX its processes; got '
        f'{checks.describe(err)}. Give --coordinator, --num_processes and '
        '--process_id, or --num_processes=1 for this one alone.') from err
  return None


def _may_be(kind):
  # JAX asks a Kubernetes pod's job, which a pod outside of a job does not have.
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
  """Returns the GPU of a task if the tasks of its machine share all GPUs.

  Args:
    local: the index of this task on its machine, or None.

  Returns:
    `[local]`; None if the task is alone on its machine or sees one GPU only.
  """
  tasks = os.environ.get('SLURM_STEP_TASKS_PER_NODE') or os.environ.get(
      'OMPI_COMM_WORLD_LOCAL_SIZE') or ''
  alone = re.fullmatch(r'1(\(x\d+\))?', tasks)
  sees_one = re.fullmatch('[^,]+', os.environ.get('CUDA_VISIBLE_DEVICES', ''))
  return None if local is None or alone or sees_one else [local]
