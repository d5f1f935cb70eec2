"""The processes of a run: from flags, variables, or the cluster."""

import re
import sys

import pytest

from haikd.core import checks
from haikd.processes import cluster

# Slurm's variables for the third of four tasks on two machines.
SLURM = dict(
    SLURM_JOB_ID='4097', SLURM_STEP_NODELIST='node[07-08]', SLURM_NTASKS='4',
    SLURM_PROCID='2', SLURM_LOCALID='0', SLURM_STEP_TASKS_PER_NODE='2(x2)')
# Open MPI's variables for the second of two processes.
OMPI = dict(
    OMPI_MCA_orte_hnp_uri='8192.0;tcp://10.96.0.1,10.148.0.1:34911',
    OMPI_COMM_WORLD_SIZE='2', OMPI_COMM_WORLD_RANK='1',
    OMPI_COMM_WORLD_LOCAL_RANK='1', OMPI_COMM_WORLD_LOCAL_SIZE='2')
# GKE's variables for the second machine of a slice of two.
GKE = dict(
    TPU_WORKER_HOSTNAMES='s-0.s,s-1.s', TPU_WORKER_ID='1',
    KUBERNETES_SERVICE_HOST='10.0.0.1', JOB_COMPLETION_INDEX='1')


@pytest.fixture(autouse=True)
def bare(monkeypatch):
  """Hides the cluster that the tests may run on."""
  for name in (*cluster.VARIABLES, *SLURM, *OMPI, *GKE, 'CUDA_VISIBLE_DEVICES',
               'JAX_COORDINATOR_PORT', 'MEGASCALE_COORDINATOR_ADDRESS'):
    monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch, variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)


def test_a_laptop_is_alone():
  assert cluster.find() is None


def test_arguments_give_the_cluster():
  assert cluster.find('host:1', 2, 1) == ('host:1', 2, 1, None)


def test_variables_replace_arguments(monkeypatch):
  set_all(monkeypatch, dict(HAIKD_COORDINATOR='host:1',
                            HAIKD_NUM_PROCESSES='3', HAIKD_PROCESS_ID='2'))
  assert cluster.find() == ('host:1', 3, 2, None)
  assert cluster.find('other:2', 2, 1) == ('other:2', 2, 1, None)


@pytest.mark.parametrize('variables', [SLURM, OMPI, GKE])
def test_one_process_on_request_is_alone_in_any_cluster(monkeypatch, variables):
  set_all(monkeypatch, variables)
  assert cluster.find(num_processes=1) is None


# JAX derives the port from the job: 65535 - 2^12 + 1 + 4097 mod 2^12 = 61441.
# For Open MPI it adds 8192 / 2^12 = 2, which gives 61442.
@pytest.mark.parametrize('changes, gpus', [
    ({}, [0]),
    (dict(SLURM_LOCALID='1', SLURM_PROCID='3'), [1]),
    # The task is alone on its machine and gets all its GPUs.
    (dict(SLURM_NTASKS='4', SLURM_STEP_TASKS_PER_NODE='1(x4)'), None),
    # The task sees one GPU only.
    (dict(CUDA_VISIBLE_DEVICES='3'), None),
    (dict(CUDA_VISIBLE_DEVICES='0,1'), [0]),
])
def test_slurm_tasks(monkeypatch, changes, gpus):
  variables = {**SLURM, **changes}
  set_all(monkeypatch, variables)
  assert cluster.find() == (
      'node07:61441', 4, int(variables['SLURM_PROCID']), gpus)


def test_port_is_configurable(monkeypatch):
  set_all(monkeypatch, {**SLURM, 'JAX_COORDINATOR_PORT': '1234'})
  assert cluster.find().coordinator == 'node07:1234'


@pytest.mark.parametrize('changes', [
    dict(SLURM_NTASKS='1'),  # srun with one task.
    dict(SLURM_STEP_NODELIST=None),  # In salloc or sbatch, without srun.
])
def test_one_slurm_task_is_alone(monkeypatch, changes):
  set_all(monkeypatch, {name: value for name, value in {
      **SLURM, **changes}.items() if value is not None})
  assert cluster.find() is None


def test_open_mpi(monkeypatch):
  set_all(monkeypatch, OMPI)
  assert cluster.find() == ('10.96.0.1:61442', 2, 1, [1])


def test_pod_outside_of_a_job_is_alone(monkeypatch):
  monkeypatch.setenv('KUBERNETES_SERVICE_HOST', '10.0.0.1')
  monkeypatch.setitem(sys.modules, 'kubernetes', object())  # Fails if used.
  assert cluster.find() is None


def test_opt_in_cluster_is_not_tried(monkeypatch):

  class Mpi4py:
    opt_in_only_method = True

    @classmethod
    def is_env_present(cls):
      return pytest.fail('it was tried')

  monkeypatch.setattr(
      cluster.jax_internals, 'cluster_kinds', lambda: [Mpi4py])
  assert cluster.find() is None


def test_cluster_that_cannot_be_read_is_an_error(monkeypatch):
  set_all(monkeypatch, {**SLURM, 'SLURM_NTASKS': 'four'})
  with pytest.raises(
      checks.ConfigError,
      match='^this cluster must tell JAX its processes; got ValueError: .*four'
      '.* Give .* --num_processes=1 for this one alone'):
    cluster.find()


@pytest.mark.parametrize('given, rule', [
    ((None, 2, 0), 'must be given together; got coordinator=None'),
    (('host:1', None, None), 'must be given together'),
    (('host:1', 2, None), 'must be given together; .* process_id=None'),
    (('host', 2, 0), '--coordinator must be host:port'),
    (('host:1', 2, 2), '--process_id must be from 0 to num_processes - 1'),
    (('host:1', 2, -1), '--process_id must be from 0 .* process_id=-1'),
])
def test_wrong_arguments_are_refused(given, rule):
  with pytest.raises(checks.ConfigError, match=rule):
    cluster.find(*given)


def test_variables_that_are_not_numbers_are_refused(monkeypatch):
  set_all(monkeypatch, dict(HAIKD_COORDINATOR='host:1',
                            HAIKD_NUM_PROCESSES='two', HAIKD_PROCESS_ID='0'))
  with pytest.raises(checks.ConfigError,
                     match=re.escape("must be integers; got 'two', '0'")):
    cluster.find()
