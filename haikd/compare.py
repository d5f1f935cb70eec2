"""Is one run better than another? Compares finished runs, paired by seed.

  python -m haikd.compare runs/a runs/b
  python -m haikd.compare runs/a runs/b runs/c --network=student_alone
  python -m haikd.compare runs/a runs/b --out=compare.svg

A run is the workdir of a finished run, of one seed or of --seeds. Each is
compared with the first: the table has means and, where there are several seeds,
95 % intervals by Student's t, and the mean difference from the first run with
the interval of a paired t-test. The picture shows the differences seed by seed;
it needs `pip install 'haikd[report]'`.

Exit codes: 0 done; 1 a bug; 2 a wrong flag, or runs that cannot be compared; 3
a workdir without results, or files that cannot be used; 130 interrupted; 141
nobody reads the output any more.
"""

import pathlib
import sys
from typing import Optional

from absl import flags

from haikd.config import file as config_file
from haikd.core import checks
from haikd.report import drawing
from haikd.run import command
from haikd.run import comparison as comparison_lib
from haikd.run import console
from haikd.run import results as results_lib

_SUFFIXES = ('.png', '.svg')


def main(argv: Optional[list[str]] = None) -> int:
  """Runs the command line.

  Args:
    argv: the program's name and its arguments; `sys.argv` by default.

  Returns:
    The exit code.
  """
  argv = list(sys.argv if argv is None else argv)
  return command.run(lambda: _main(argv), debug='--debug' in argv)


def _main(argv):
  values = _define_flags()
  workdirs = _parse(values, argv)
  if values.help or len(argv) == 1:
    print(f'{__doc__}\n{values.get_help()}')
  else:
    _run(values, workdirs)
  return 0


def _run(values, workdirs):
  out = pathlib.Path(values.out)
  if out.suffix not in _SUFFIXES:
    raise checks.ConfigError(
        f'--out must end in {" or ".join(_SUFFIXES)}; got {values.out}.')
  if len(workdirs) < 2:
    raise checks.ConfigError(
        f'two workdirs or more must be given; got {len(workdirs)}. Write '
        'python -m haikd.compare runs/a runs/b.')
  runs = [comparison_lib.read(workdir) for workdir in workdirs]
  found = comparison_lib.compare(runs, values.network)
  says = f"For {out}, install matplotlib: pip install 'haikd[report]'."
  if drawing.is_available():
    _write(out, comparison_lib.picture(found, out.suffix[1:]))
    says = f'The differences seed by seed are in {out}.'
  for sentence in found.remarks:
    print(f'haikd: {sentence}', file=sys.stderr)
  columns, rows = comparison_lib.table(found)
  console.table(rows, columns)
  print(says)


def _write(out, content):
  try:
    out.write_bytes(content)
  except OSError as err:
    raise checks.DataError(
        f'--out must be a file that can be written; got {out} '
        f'({checks.one_line(err)}). Choose a file in a folder that is there.'
    ) from err


def _define_flags():
  values = flags.FlagValues()
  flags.DEFINE_enum(
      'network', 'student', [row.name for row in results_lib.ROWS],
      'The network that is compared.', flag_values=values)
  flags.DEFINE_string(
      'out', 'compare.png', 'The picture, .png or .svg.', flag_values=values)
  flags.DEFINE_bool(
      'debug', False, 'Show the traceback of an error.', flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this help.', flag_values=values)
  values.set_gnu_getopt(True)
  return values


def _parse(values, argv):
  """Parses the flags; returns the other arguments, the workdirs."""
  try:
    return values(argv)[1:]
  except flags.Error as err:
    raise config_file.wrong_flag(err) from err


if __name__ == '__main__':
  sys.exit(main())
