"""A network that a run has trained, to be used without the run's data."""

from collections.abc import Callable, Collection, Mapping
import functools
from typing import Any, Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import pixels
from haikd.core import plugins
from haikd.core import registry
from haikd.data import interface as interface_lib
from haikd.data.image import views
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
    interface: what it takes.
    image_view: how it sees images.
  """

  def __init__(self, params: base.ArrayTree, state: base.ArrayTree,
               config: config_lib.ConfigDict,
               interface: interface_lib.Interface):
    self.params = params
    self.state = state
    self.config = config
    self.class_names = interface.class_names
    self.interface = interface
    self.image_view = views.build_view(config.data)

  def apply(self, inputs: Any,
            mask: Optional[np.ndarray] = None) -> jax.Array:
    """Returns the outputs for a batch; compiled once for each shape.

    Args:
      inputs: what the data set has in an example, for a batch: an array
        `[B, …]`, or a dict of arrays where there are several inputs. Images are
        resized, divided by 255 if they are uint8, and standardised, as in the
        evaluation of the run; then they may be a list of images of any size.
      mask: bool `[B]` or `[B, N]`, true where an example or position is real;
        None for all.

    Returns:
      float32: logits or predicted numbers `[B, V]` or `[B, N, V]`, or the
      vectors of an encoder, `[B, D]`.

    Raises:
      DataError: inputs of other keys, dtypes or shapes than in training.
    """
    return self._run(inputs, mask, self.compiled)

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
    return self._run(inputs, mask, self._taps)

  def _run(self, inputs, mask, run):
    view = self.interface.view(inputs, mask, self._prepared)
    return run(*self.on_device, view)

  def _prepared(self, images):
    """Returns images resized and scaled as in evaluation, `[B, h, w, C]`."""
    fitting = [self.image_view.fit(np.asarray(image)) for image in images]
    return self.scaled(np.asarray(fitting))

  def scaled(self, images: np.ndarray) -> np.ndarray:
    """Returns images of the network's size, scaled as in evaluation."""
    return np.asarray(
        pixels.scaled(self.image_view.inputs(images)), np.float32)

  @functools.cached_property
  def on_device(self) -> tuple[base.ArrayTree, base.ArrayTree]:
    """Parameters and state on a device."""
    return jax.device_put((self.params, self.state))

  @functools.cached_property
  def compiled(self) -> Callable:
    """The compiled `function()`."""
    return jax.jit(self.function())

  @functools.cached_property
  def _taps(self):
    config = self.config.student
    declared = registry.models.find(config.model, 'config.student.model').taps

    def is_offered(kind, *args):
      # By its options, a model may offer some only of what it declares.
      try:
        jax.eval_shape(self.function((kind,)), *args)
      except checks.ConfigError:
        return False
      return True

    def run(*args):
      kinds = [kind for kind in declared
               if kind in config.taps or is_offered(kind, *args)]
      return self.function(dict.fromkeys((*kinds, *config.taps)))(*args)

    return jax.jit(run)

  def function(self, kinds: Collection[str] = ()) -> Callable:
    """Returns the network in inference as a function of its variables.

    Args:
      kinds: the kinds of taps that it returns; none for its outputs.

    Returns:
      `(params, state, view) -> outputs`, float32; images are prepared already.
    """
    network = network_lib.build_network(
        self.config.student, title='student',
        num_classes=self.interface.num_classes, kinds=kinds)

    def run(params, state, view):
      batch = base.Batch(view.inputs, view.mask)
      output, _ = network.apply(
          params, state, None, batch, is_training=False)
      return materialised(output.taps if kinds else output.logits)

    return run


def materialised(values: Any) -> Any:
  """Returns outputs or taps of a network as arrays, float32."""
  return jax.tree.map(lambda x: jnp.asarray(_computed(x), jnp.float32), values,
                      is_leaf=_is_lazy)


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
  if which == 'teacher' and not checkpoint.has_checkpoint(folder):
    _refuse_given(workdir)
  saved = checkpoint.metadata(folder, field='workdir')
  if 'interface' not in saved:
    raise checks.DataError(
        'workdir must be of a run that says what its network takes; got '
        f'{str(folder)!r}, which an earlier version saved. Start the run again '
        'with more steps.')
  config = config_lib.Config(saved['config'])
  plugins.load(config.plugins)
  params, state = checkpoint.load_network(folder)
  return TrainedNetwork(params, state, config,
                        interface_lib.from_json(saved['interface']))


def _refuse_given(workdir):
  """Refuses to load a teacher that the run was given, and says where it is."""
  if not checkpoint.has_checkpoint(workdir):
    return
  init = checkpoint.metadata(workdir)['config']['teacher']['init']
  if init:
    remedy = (f'Load the student of {init!r} instead.'
              if checkpoint.has_checkpoint(init) else 'Load it from there.')
    raise checks.DataError(
        "workdir must be of a run that trained its teacher; got one that began "
        f'with that of {init!r}. {remedy}')


def _is_lazy(value):
  return isinstance(value, (base.LinearLogits, base.QueryKey, base.Embedding))


def _computed(value):
  """Returns lazy logits or maps as arrays, and an Embedding's vectors."""
  if isinstance(value, base.Embedding):
    return value.vectors
  return value.materialise() if _is_lazy(value) else value
