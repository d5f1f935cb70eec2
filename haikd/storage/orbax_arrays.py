"""The leaves of a large state, or of many processes, as Orbax saves them.

Orbax takes a fifth of a second to import: only what needs it does so.
"""

from collections.abc import Iterator, Mapping
import contextlib
import logging
import pathlib
from typing import Any
import warnings

import jax
import numpy as np

from haikd.storage import paths


class Writer:
  """Writes the leaves of one state after another."""

  def __init__(self) -> None:
    import orbax.checkpoint as ocp
    with quiet():
      self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())

  def start(self, folder: paths.ConcretePath,
            leaves: Mapping[str, Any]) -> None:
    """Starts to write a folder; returns when the leaves have been copied.

    Call it on all processes, once the folder before is complete.

    Args:
      folder: to write; it must not be there.
      leaves: arrays by name.
    """
    import orbax.checkpoint as ocp
    with quiet():
      self._checkpointer.save(folder, args=ocp.args.PyTreeSave(dict(leaves)))

  def wait(self) -> None:
    """Returns when the folder is complete, with the shards of all processes."""
    self._checkpointer.wait_until_finished()

  def close(self) -> None:
    """Frees the resources for writing, on all processes."""
    self._checkpointer.close()


def read_shapes(folder: paths.ConcretePath) -> dict[str, Any]:
  """Returns the `jax.ShapeDtypeStruct`s of the leaves by name."""
  import orbax.checkpoint as ocp
  with quiet(), ocp.PyTreeCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(folder).item_metadata
    if metadata is None:
      raise FileNotFoundError('its arrays cannot be found')
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in metadata.tree.items()
    }


def read(folder: paths.ConcretePath, requested: Mapping[str, Any],
         as_numpy: bool) -> dict[str, Any]:
  """Reads the requested leaves; arguments as `step_folder.read_leaves`."""
  import orbax.checkpoint as ocp
  if as_numpy:
    restore_args = {
        name: ocp.RestoreArgs(restore_type=np.ndarray) for name in requested}
  else:
    restore_args = ocp.checkpoint_utils.construct_restore_args(dict(requested))
  with quiet(), ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(
        folder, args=ocp.args.PyTreeRestore(
            item=dict(requested), restore_args=restore_args,
            partial_restore=True))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Hides Orbax's messages to its developers, also those from its threads."""
  logging.getLogger('absl').addFilter(_is_not_orbax)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def _is_not_orbax(record):
  return 'orbax' not in pathlib.PurePath(record.pathname).parts
