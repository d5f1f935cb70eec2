"""Runs the command line again and again, in processes that are killed.

One process imports everything once and forks for each life, before JAX has
touched a device: a life begins in a fraction of a second. It says in shared
memory what its watchdog is told, so that a kill can be aimed at a phase.
"""

import json
import mmap
import os
import pathlib
import select
import signal
import subprocess
import sys
import time

_SIZE = 256  # Bytes of shared memory.


class Lives:
  """Starts lives; use it in a `with` statement.

  Args:
    folder: for a file of its own.
    environment: of the lives.
  """

  def __init__(self, folder, environment):
    self._path = pathlib.Path(folder) / 'phase'
    self._path.write_bytes(bytes(_SIZE))
    with open(self._path, 'r+b') as file:
      self._memory = mmap.mmap(file.fileno(), _SIZE)
    with open(pathlib.Path(folder) / 'server.log', 'w') as log:
      self._server = subprocess.Popen(
          [sys.executable, __file__, self._path], env=environment, text=True,
          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    self._pid = None

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.kill()
    self._server.stdin.close()
    self._server.wait()

  def start(self, argv, log):
    """Starts `haikd.launch` with arguments, its output in a file."""
    self._memory[:] = bytes(_SIZE)
    self._server.stdin.write(json.dumps([argv, str(log)]) + '\n')
    self._server.stdin.flush()
    self._pid = int(self._server.stdout.readline())

  def phase(self):
    """Returns what it does, such as 'step|step 5 of student'."""
    return self._memory[:].split(b'\0', 1)[0].decode()

  def ended(self, seconds=0.0):
    """Returns the exit code, or None if it still lives after a while."""
    if self._pid is None:
      return None
    if not select.select([self._server.stdout], [], [], seconds)[0]:
      return None
    self._pid = None
    return int(self._server.stdout.readline())

  def kill(self):
    """Kills it; returns what it did, or None if it had ended before."""
    if self._pid is None or self.ended() is not None:
      return None
    phase = self.phase()
    os.kill(self._pid, signal.SIGKILL)
    code = self.ended(60)
    return phase if code == -signal.SIGKILL else None

  def wait_for(self, happens, seconds=300.0):
    """Returns once `happens()`, or it has ended: whether it still lives."""
    deadline = time.monotonic() + seconds
    while not happens():
      if self._pid is None or select.select([self._server.stdout], [], [],
                                            0)[0]:
        return False
      assert time.monotonic() < deadline, self.phase()
      time.sleep(0.0005)
    return True


def _serve(path):
  """Forks a life for each line of standard input."""
  from haikd import launch
  from haikd.processes import watchdog
  from haikd.run import job  # noqa: F401: what a life imports.
  with open(path, 'r+b') as file:
    memory = mmap.mmap(file.fileno(), _SIZE)
  enter = watchdog.enter

  def told(phase, where):
    text = f'{phase}|{where}'.encode()[:_SIZE - 1]
    memory[:len(text) + 1] = text + b'\0'
    enter(phase, where)

  watchdog.enter = told
  for line in sys.stdin:
    argv, log = json.loads(line)
    pid = os.fork()
    if not pid:
      output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
      os.dup2(output, 1)
      os.dup2(output, 2)
      code = 1
      try:
        code = launch.main(['launch', *argv])
      finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == '__main__':
  _serve(sys.argv[1])
