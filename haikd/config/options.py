"""Options on their way from the config to the functions that take them."""

from typing import Any

import ml_collections
from ml_collections import config_dict


def plain(options: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the options of a config as functions expect them.

  A config holds a dict as a ConfigDict, at any depth, which is no dict for the
  function that gets it. All options pass here when they leave the config.

  Args:
    options: of a model, a loss, an aligner, a data set, augmentations or an
      optimizer.

  Returns:
    A dict, with dicts for ConfigDicts and values for field references, also
    inside of tuples and lists.
  """
  return {name: _plain(value) for name, value in options.items()}


def _plain(value):
  if isinstance(value, config_dict.FieldReference):
    return _plain(value.get())
  if isinstance(value, (ml_collections.ConfigDict, dict)):
    return plain(value)
  if type(value) in (list, tuple):  # Not a named tuple.
    return type(value)(map(_plain, value))
  return value
