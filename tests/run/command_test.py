"""How an error ends a command: in one line, with its exit code."""

import pytest

from haikd.core import checks
from haikd.run import command


def fail(error):
  raise error


@pytest.mark.parametrize('error, code, line', (
    (checks.ConfigError('x must be y;\ngot z.'), 2, 'x must be y; got z.'),
    (checks.DataError('no file'), 3, 'no file'),
    (RuntimeError('odd'), 1,
     'RuntimeError: odd; run with --debug for the traceback'),
    (KeyboardInterrupt(), 130, 'interrupted.'),
))
@pytest.mark.parametrize('debug', (False, True))
def test_an_error_is_one_line_and_a_code(capsys, error, code, line, debug):
  assert command.run(lambda: fail(error), debug=debug) == code
  err = capsys.readouterr().err
  assert err.endswith(f'haikd: {line}\n')
  is_shown = debug and code != 130
  assert ('Traceback' in err) == is_shown
  assert is_shown or err.count('\n') == 1


def test_a_reader_who_has_gone_is_no_error(capsys, monkeypatch):
  monkeypatch.setattr(command.console, 'nobody_reads', lambda _: True)
  assert command.run(lambda: fail(BrokenPipeError()), debug=True) == 141
  assert capsys.readouterr().err == ''


def test_what_an_action_returns_or_exits_with_stands():
  assert command.run(lambda: 7, debug=False) == 7
  with pytest.raises(SystemExit):
    command.run(lambda: fail(SystemExit(5)), debug=False)
