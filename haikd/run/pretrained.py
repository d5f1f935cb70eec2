"""Weights that networks start from: a workdir, or those of another library.

`config.teacher.init` and `config.student.init` name them: the workdir of a run,
`npz:<file>`, an archive of arrays, `orbax:<folder>`, a tree that Orbax has
saved, `hf:<folder>` as Hugging Face's transformers writes it, or `gguf:<file>`.
"""

from types import ModuleType
from typing import Optional

import numpy as np

from haikd import config as config_lib
from haikd import interop
from haikd.core import base
from haikd.data import pipeline
from haikd.storage import archive
from haikd.storage import checkpoint
from haikd.storage import orbax_tree


def check(config: config_lib.ConfigDict, role: str, expected: base.Variables,
          data: pipeline.Data) -> None:
  """Refuses weights that a network cannot start from.

  Args:
    config: as for `load`.
    role: as for `load`.
    expected: as for `load`.
    data: as for `load`.

  Raises:
    DataError: as `load`.
  """
  field, network = f'config.{role}.init', config[role]
  if reader := _reader_of_arrays(network.init):
    reader.check(field, network.init, expected)
    return
  if not interop.is_pretrained(network.init):
    checkpoint.load_like(field, network.init, expected)
    return
  interop.check(
      field,
      network.init,
      expected,
      options=config_lib.plain(network.options),
      layers=network.init_layers,
      kept_ids=_kept_ids(data, role),
      ignore=network.init_options.ignore)


def load(config: config_lib.ConfigDict, role: str, expected: base.Variables,
         data: pipeline.Data) -> base.Variables:
  """Reads the weights that a network starts from.

  Args:
    config: a config from `resolve.from_pretrained`.
    role: 'teacher' or 'student'.
    expected: the network's parameters and state as `jax.ShapeDtypeStruct`s with
      the dtypes and shardings to load them with.
    data: the data, whose vocabulary may be a part of the vocabulary of the
      weights.

  Returns:
    Parameters and state.

  Raises:
    DataError: the weights are missing, cannot be read, or belong to another
      network.
  """
  field, network = f'config.{role}.init', config[role]
  if reader := _reader_of_arrays(network.init):
    return reader.load(field, network.init, expected)
  if not interop.is_pretrained(network.init):
    return checkpoint.load_like(field, network.init, expected)
  return interop.load(
      field,
      network.init,
      expected,
      options=config_lib.plain(network.options),
      layers=network.init_layers,
      kept_ids=_kept_ids(data, role),
      ignore=network.init_options.ignore)


def is_available(init: Optional[str]) -> bool:
  """Returns whether `init` names weights that exist.

  A run that has saved something does not need the weights it started from;
  they may be gone. Files of other libraries were read when the config was
  resolved.

  Args:
    init: `config.student.init` or `config.teacher.init`.
  """
  if not init:
    return False
  if reader := _reader_of_arrays(init):
    return reader.exists(init)
  return interop.is_pretrained(init) or checkpoint.has_checkpoint(init)


def seconds(init: str) -> float:
  """Returns the training time of weights in seconds; 0 if unknown."""
  if interop.is_pretrained(init) or _reader_of_arrays(init):
    return 0.0
  return checkpoint.metadata(init)['seconds']


def _reader_of_arrays(init: Optional[str]) -> Optional[ModuleType]:
  """Returns the module that reads arrays without a config, or None."""
  return next((reader for reader in (archive, orbax_tree)
               if str(init or '').startswith(reader.PREFIX)), None)


def _kept_ids(data, role) -> Optional[np.ndarray]:
  """Returns the ids of a pruned vocabulary in the full one, or None."""
  text = data.text_of(role)
  return None if text is None else text.kept_ids
