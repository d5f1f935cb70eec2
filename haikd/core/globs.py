"""Globs over the names of Haiku modules and parameters."""

from collections.abc import Sequence
import fnmatch

# A module whose name begins with this is an `hk.layer_stack`.
LAYER_STACK = '__layer_stack'


def parts(name: str) -> list[str]:
  """Returns the '/'-separated parts of a name without methods such as `~`."""
  return [part for part in name.split('/') if not part.startswith('~')]


def matches(glob: str, name: Sequence[str]) -> bool:
  """Returns whether a glob matches a name.

  Args:
    glob: its parts are matched against the last parts of the name. `block_*`
      matches every module with such a name at any depth; `block_*/attn` matches
      each module `attn` directly inside one. A part `~` is left out, as it
      is of names.
    name: the parts of a name, as `parts` returns them.
  """
  patterns = parts(glob)
  return 0 < len(patterns) <= len(name) and all(
      map(fnmatch.fnmatchcase, name[-len(patterns):], patterns))


def matches_within(glob: str, name: Sequence[str]) -> bool:
  """Returns whether a glob matches a name, or a module that it lies in.

  Args:
    glob: as for `matches`.
    name: the parts of the name of a parameter or module.
  """
  return any(matches(glob, name[:end]) for end in range(1, len(name) + 1))
