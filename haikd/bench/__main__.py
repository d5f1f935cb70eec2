"""How fast is haikd's training step, against one written by hand?

  python -m haikd.bench
  python -m haikd.bench --case=logits,attention --reference=fused --cores=1
  python -m haikd.bench --list

Both sides have the same parameters and the same batch, each in its own process.
They must agree in the losses of the first two steps, and then take steps in
turn. haikd's step is the one of a run, built from its config. The other is one
jitted function in plain JAX that materialises maps and logits (`materialised`)
or computes them in blocks and chunks (`fused`). Cases of another divergence are
compared with the same step with `kl_divergence`, and need not agree with it.

Exit codes: 0 done; 1 the sides disagree, or something unforeseen; 2 a wrong
flag, or no clone of the repository; 130 interrupted; 141 nobody reads what is
printed.
"""

import pathlib
import sys
from typing import Optional

from absl import flags

from haikd.bench import cases
from haikd.bench import measure
from haikd.bench import summary
from haikd.config import file as config_file
from haikd.core import checks
from haikd.run import command
from haikd.run import console


def main(argv: Optional[list[str]] = None) -> int:
  """Runs the command line.

  Args:
    argv: the program's name and its arguments; `sys.argv` by default.

  Returns:
    The exit code.
  """
  argv = list(sys.argv if argv is None else argv)
  return command.run(
      lambda: _main(argv), debug='--debug' in argv,
      interrupted='interrupted; finished cases are in --output.')


def _main(argv):
  values = _define_flags()
  _parse(values, argv)
  if values.help:
    print(f'{__doc__}\n{_listing()}\n{values.get_help()}')
  elif values.list:
    print(_listing())
  else:
    _run(values, argv)
  return 0


def _run(values, argv):
  if not 0 <= values.padding < 1:
    raise checks.ConfigError(
        '--padding must be at least 0 and below 1; got '
        f'--padding={values.padding}.')
  names = [x for group in values.case for x in group.split(',')]
  chosen = cases.choose(names, values.reference, values.padding)
  measure.find_references()
  measure.chosen_cores(values.cores)
  results, output = {}, pathlib.Path(values.output)
  bar = console.open_console('bench', len(chosen) * values.rounds)
  try:
    for number, (name, case) in enumerate(chosen.items()):
      bar.message(f'{name}: {case["title"]}')
      results[name] = measure.run(
          case,
          rounds=values.rounds,
          cores=values.cores,
          debug=values.debug,
          progress=lambda done, n=number: bar.progress(
              n * values.rounds + done))
      summary.write(output, ['python', '-m', 'haikd.bench', *argv[1:]], chosen,
                    results)
  finally:
    bar.close()
    if results:
      summary.show(results)
  print(f'Every round is in {output}.')


def _listing():
  width = max(map(len, cases.CASES))
  return '\n'.join(
      f'{name:{width}}  {case["title"]}' for name, case in cases.CASES.items())


def _define_flags():
  values = flags.FlagValues()
  flags.DEFINE_multi_string(
      'case', [], 'Cases to measure, separated by commas or one a flag; all by '
      'default.', flag_values=values)
  flags.DEFINE_bool('list', False, 'List the cases.', flag_values=values)
  flags.DEFINE_enum(
      'reference', 'materialised', cases.REFERENCES,
      'The step by hand that haikd is compared with; fused is for text only.',
      flag_values=values)
  flags.DEFINE_float(
      'padding', 0.25, 'For text, the mean fraction of padding in a row.',
      flag_values=values)
  flags.DEFINE_integer(
      'rounds', 5, 'How often each side is timed.', lower_bound=3,
      flag_values=values)
  flags.DEFINE_integer(
      'cores', None, 'Number of cores that a side may use; all by default.',
      lower_bound=1, flag_values=values)
  flags.DEFINE_string(
      'output', 'runs/bench.json', 'JSON file for every number.',
      flag_values=values)
  flags.DEFINE_bool(
      'debug', False, 'Show the traceback of an error, and what the sides '
      'print.', flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this help.', flag_values=values)
  values.set_gnu_getopt(True)
  return values


def _parse(values, argv):
  """Parses the flags; nothing may be left over."""
  try:
    surplus = values(argv)[1:]
  except flags.Error as err:
    raise config_file.wrong_flag(err) from err
  if surplus:
    raise checks.ConfigError(
        f'every argument must be a flag; got {surplus[0]!r}. See --help.')


if __name__ == '__main__':
  sys.exit(main())
