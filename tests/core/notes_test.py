"""What was decided for the user is said once."""

import logging

from haikd.core import notes


def test_each_message_is_printed_once(capsys, caplog):
  with notes.printed():
    for message in ('one', 'two', 'one'):
      notes.say(message)
  notes.say('after')
  assert capsys.readouterr().err == 'haikd: one\nhaikd: two\n'
  assert not caplog.messages  # Handlers of the root logger don't print it too.


def test_other_processes_are_silent(capsys):
  with notes.printed(False):
    notes.say('one')
  assert capsys.readouterr().err == ''


def test_a_library_logs_instead(caplog):
  with caplog.at_level(logging.INFO, 'haikd'):
    notes.say('one')
  assert caplog.messages == ['one']
