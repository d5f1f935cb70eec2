"""A network that a run has trained, to be used without the run's data."""

from collections.abc import Mapping
import functools
from typing import Any, Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import plugins
from haikd.core import registry
from haikd.data import interface as interface_lib
from haikd.data.image import normalise
from haikd.network import network as network_lib
from haikd.run import results
from haikd.storage import checkpoint
from haikd.storage import paths


class TrainedNetwork:
  """A trained network.

  Attributes:
    params: Haiku parameters, NumPy arrays; their running mean, if one was kept.
    state: Haiku state, likewise.
    config: the config that it was trained with; the network is
      `config.student`, also for a teacher.
    class_names: the names of the classes, or None.
  """

  def __init__(self, params: base.ArrayTree, state: base.ArrayTree,
               config: config_lib.ConfigDict,
               interface: interface_lib.Interface):
    self.params = params
    self.state = state
    self.config = config
    self.class_names = interface.class_names
    self._interface = interface
    self._scale = normalise.build_scale(config.data.mean, config.data.std)

  def apply(self, inputs: Any,
            mask: Optional[np.ndarray] = None) -> jax.Array:
    """Returns the outputs for a batch; compiled once for each shape.

    Args:
      inputs: what the data set has in an example, for a batch: an array
        `[B, …]`, or a dict of arrays where there are several inputs. Images are
        divided by 255 if they are uint8, and standardised, as in training.
      mask: bool `[B]` or `[B, N]`, true where an example or position is real;
        None for all.

    Returns:
      float32: logits or predicted numbers `[B, V]` or `[B, N, V]`, or the
      vectors of an encoder, `[B, D]`.

    Raises:
      DataError: inputs of other keys, dtypes or shapes than in training.
    """
    return self._run(inputs, mask)[0]

  def features(self, inputs: Any,
               mask: Optional[np.ndarray] = None) -> Mapping[str, Any]:
    """Returns what the taps of the network capture for a batch.

    Args:
      inputs: as for `apply`.
      mask: as for `apply`.

    Returns:
      `{kind: tuple of arrays in call order}`; attention maps are `[B, H, N,
      N]`. The kinds are those of `config.student.taps` and of the model.
    """
    return self._run(inputs, mask)[1]

  def _run(self, inputs, mask):
    view = self._interface.view(inputs, mask, self._scale)
    return self._compiled(self.params, self.state, view)

  @functools.cached_property
  def _compiled(self):
    config = self.config.student
    taps = registry.models.find(config.model, 'config.student.model').taps
    network = network_lib.build_network(
        config, title='student', num_classes=self._interface.num_classes,
        kinds=dict.fromkeys((*taps, *config.taps)))

    def run(params, state, view):
      batch = base.Batch(view.inputs, view.mask)
      output, _ = network.apply(
          params, state, None, batch, is_training=False)
      return jax.tree.map(
          lambda x: jnp.asarray(_computed(x), jnp.float32),
          (output.logits, output.taps), is_leaf=_is_lazy)

    return jax.jit(run)


def load(workdir: paths.Path, which: str) -> TrainedNetwork:
  """Reads a network that a run has trained.

  Args:
    workdir: the workdir of the run.
    which: a key of `results.FOLDERS`.

  Returns:
    The network.

  Raises:
    ConfigError: `which` is no such key, or a plugin cannot be imported.
    DataError: the run has no checkpoint of that network, or one that was saved
      before a checkpoint said what its network takes.
  """
  if which not in results.FOLDERS:
    raise checks.ConfigError(
        f'which must be a network that a run trains; got {which!r}. '
        f'{checks.suggest(which, results.FOLDERS)}')
  folder = paths.as_path(workdir) / results.FOLDERS[which]
  saved = checkpoint.metadata(folder, field='workdir')
  if 'interface' not in saved:
    raise checks.DataError(
        'workdir must be of a run that says what its network takes; got '
        f'{str(folder)!r}, which an earlier version saved. Start the run again '
        'with more steps.')
  config = config_lib.ConfigDict(saved['config'])
  plugins.load(config.plugins)
  params, state = checkpoint.load_network(folder)
  return TrainedNetwork(params, state, config,
                        interface_lib.from_json(saved['interface']))


def _is_lazy(value):
  return isinstance(value, (base.LinearLogits, base.QueryKey, base.Embedding))


def _computed(value):
  """Returns lazy logits or maps as arrays, and an Embedding's vectors."""
  if isinstance(value, base.Embedding):
    return value.vectors
  return value.materialise() if _is_lazy(value) else value
