"""A process knows whether it is haikd's command line."""

import pytest

from haikd.processes import command_line


@pytest.mark.parametrize('command, own', [
    ('python -m haikd --config=x', True),
    ('python -X dev -m haikd.launch', True), ('python -mhaikd.bench', True),
    ('python -Im haikd', True), ('python -W error -m haikd', True),
    ('python --check-hash-based-pycs always -m haikd', True),
    ('python /venv/bin/haikd -m', True), ('python -Xdev bin/haikd', True),
    # Modules and scripts of users, which may call haikd, and their children.
    ('python -m mine -m haikd', False), ('python -m haikdx', False),
    ('python -Bm mine -m haikd', False), ('python -c haikd -m haikd', False),
    ('python train.py -m haikd', False), ('python - haikd', False),
    ('python -W haikd', False), ('python /bin/my-haikd', False),
    ('python -m', False), ('python', False), ('', False)])
def test_only_the_command_line_is_haikds_own(command, own):
  assert command_line.is_own(command.split()) == own
