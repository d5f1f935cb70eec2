"""Globs over the names of Haiku modules and parameters."""

from collections.abc import Sequence
import fnmatch

# A module whose name begins with this is an `hk.layer_stack`.
LAYER_STACK = '__layer_stack'


def parts(name: str) -> list[str]:
  """Returns the '/'-separated parts of a name, methods such as `~` left out."""
  return [part for part in name.split('/') if not part.startswith('~')]


def matches(glob: str, name: Sequence[str]) -> bool:
  """Returns whether a glob finds a name.

  Args:
    glob: its parts are matched against the last ones of the name: `block_*`
      finds every module so called at any depth, `block_*/attn` those called
      `attn` directly inside one.
    name: as from `parts`.
  """
  patterns = glob.split('/')
  return len(patterns) <= len(name) and all(
      map(fnmatch.fnmatchcase, name[-len(patterns):], patterns))
