"""The command line starts itself again with huge pages, and nothing else."""

import os
import subprocess
import sys
import textwrap

import pytest

from haikd.processes import huge_pages

_CONFIG = """
    import os
    import sys
    from haikd import config as config_lib

    def get_config():
      print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), *sys.argv[2:])
      config = config_lib.base()
      config.steps = -1  # Refused, before anything runs.
      return config
"""


@pytest.mark.parametrize('environment, tunables', [
    ({}, 'glibc.malloc.hugetlb=1'),
    (dict(GLIBC_TUNABLES=''), 'glibc.malloc.hugetlb=1'),
    (dict(GLIBC_TUNABLES='glibc.malloc.check=1'),
     'glibc.malloc.check=1:glibc.malloc.hugetlb=1'),
    (dict(GLIBC_TUNABLES='glibc.malloc.hugetlb=0'), ''),
    (dict(GLIBC_TUNABLES='glibc.malloc.hugetlb=2:glibc.malloc.check=1'), '')])
def test_what_the_caller_has_set_stays(environment, tunables):
  assert huge_pages.with_huge_pages(environment) == tunables


@pytest.mark.parametrize('library, mode, available', [
    ('glibc 2.35', 'always [madvise] never', True),
    ('glibc 2.34', 'always [madvise] never', False),
    ('glibc 2.4', 'always [madvise] never', False),
    (None, 'always [madvise] never', False),  # musl, or macOS.
    ('glibc 2.35', '[always] madvise never', False),
    ('glibc 2.35', 'always madvise [never]', False),
    ('glibc 2.35', None, False)])
def test_pages_need_a_library_and_a_kernel_that_are_asked(
    library, mode, available, monkeypatch, tmp_path):

  def confstr(name):
    if library is None:
      raise ValueError(f'unrecognized configuration name {name}')
    return library

  path = tmp_path / 'enabled'
  if mode:
    path.write_text(f'{mode}\n')
  monkeypatch.setattr(os, 'confstr', confstr)
  monkeypatch.setattr(huge_pages, '_MODE', path)
  assert huge_pages.are_available() == available


@pytest.mark.parametrize('trace', [None, lambda *unused: None])
def test_a_debugged_process_is_not_started_again(trace, monkeypatch):
  started = []
  monkeypatch.setattr(sys, 'orig_argv', ['python', 'bin/haikd'])
  monkeypatch.setattr(os, 'execve', lambda *given: started.append(given))
  monkeypatch.setattr(huge_pages, 'are_available', lambda: True)
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  before = sys.gettrace()
  sys.settrace(trace)
  huge_pages.use()
  sys.settrace(before)
  assert bool(started) == (trace is None)


@pytest.fixture
def config(tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(textwrap.dedent(_CONFIG))
  return path


def run(*arguments, **environment):
  """Returns what a process prints, and its number."""
  others = {name: x for name, x in os.environ.items()
            if name != 'GLIBC_TUNABLES'}
  process = subprocess.Popen(
      [sys.executable, *map(str, arguments)], env={**others, **environment},
      text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  output, errors = process.communicate(timeout=120)
  assert process.returncode in (0, 2), errors
  return output, process.pid


@pytest.mark.skipif(not huge_pages.are_available(),
                    reason='no huge pages on demand here')
@pytest.mark.parametrize('start', [
    ['-m', 'haikd'], ['-mhaikd.launch'], ['-X', 'dev', '-m', 'haikd.launch']])
def test_command_line_has_them_under_its_own_process_id(config, start):
  output, pid = run(*start, f'--config={config}', '--config.name=a b')
  assert output == f'{pid} glibc.malloc.hugetlb=1 --config.name=a b\n'


def test_command_line_leaves_a_callers_choice(config):
  value = 'glibc.malloc.hugetlb=0'
  output, pid = run('-m', 'haikd', f'--config={config}', GLIBC_TUNABLES=value)
  assert output == f'{pid} {value}\n'


def test_a_library_stays_in_its_process():
  output, pid = run('-c', 'import haikd, os; print(os.getpid(), '
                    "os.environ.get('GLIBC_TUNABLES'))", '-m', 'haikd')
  assert output == f'{pid} None\n'


def test_a_notebook_that_calls_it_stays_in_its_process(tmp_path):
  script = tmp_path / 'notebook.py'
  script.write_text("import sys\nsys.argv = ['haikd', '--help']\n"
                    'import haikd, os\nprint(os.getpid())\n')
  output, pid = run(script)
  assert output == f'{pid}\n'


def test_a_variable_that_does_not_arrive_is_not_sent_again(config, tmp_path):
  """As where the system empties it for a Python with privileges."""
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\nunset GLIBC_TUNABLES\n'
                    f'exec {sys.executable} "$@"\n')
  python.chmod(0o755)
  start = ('import os, sys; sys.executable = sys.argv[1]; '
           "sys.orig_argv = ['python', '-m', 'haikd', sys.argv[2]]; "
           'import haikd')
  output, pid = run('-c', start, python, f'--config={config}')
  assert output == f'{pid} None\n'


def test_a_profiled_process_is_not_started_again(config):
  output, pid = run('-m', 'cProfile', '-m', 'haikd', f'--config={config}')
  assert output.startswith(f'{pid} None\n')
