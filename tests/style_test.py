"""The style that tools can check."""

import pathlib
import subprocess
import sys

import pytest

import haikd

ROOT = pathlib.Path(haikd.__file__).parents[1]


@pytest.mark.parametrize('command', [
    'flake8 haikd tests configs docs',
    'isort --check haikd tests configs docs',
    'mypy',
])
def test_tool_has_nothing_to_say(command, tmp_path):
  tool, *arguments = command.split()
  if tool == 'mypy':
    arguments += ['--cache-dir', str(tmp_path)]
  done = subprocess.run([sys.executable, '-m', tool, *arguments], cwd=ROOT,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
