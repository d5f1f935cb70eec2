"""`python -m haikd` is `python -m haikd.launch`."""

import sys

from haikd import launch

if __name__ == '__main__':
  sys.exit(launch.main())
