"""Sends metrics to a tracker of experiments, besides the workdir.

A tracker gets the rows of the workdir's `metrics.jsonl`, each network of a job
as a run of its own. A run that resumes goes on with the tracker's run. What a
tracker raises never ends the run.
"""

from collections.abc import Mapping
import importlib.util
import math
import os
import pathlib
import re
import time
from typing import Any, Optional
import uuid

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import notes
from haikd.core import writers
from haikd.run import results as results_lib
from haikd.run import workdir as workdir_lib
from haikd.storage import files
from haikd.storage import paths

FILE = 'tracker.json'

_PROJECT = 'haikd'
# Where networks are saved below the workdir, by their titles.
_FOLDERS = {row.title: results_lib.FOLDERS.get(row.name)
            for row in results_lib.ROWS}
_FIELD = 'config.tracker'


def check(config: config_lib.ConfigDict) -> None:
  """Refuses a tracker that is unknown, or whose package is missing.

  Args:
    config: of the run, its plugins imported.

  Raises:
    ConfigError: the tracker cannot be used.
  """
  if config.tracker is None:
    return
  package = writers.writers.find(config.tracker, _FIELD).package
  if package and importlib.util.find_spec(package) is None:
    raise checks.ConfigError(
        f'{_FIELD} must be a tracker that is installed; got '
        f'{config.tracker!r}. Run `pip install {package}`, or set it to None.')


class Tracker:
  """Sends rows to the tracker that a config names; opened with the first row.

  Args:
    config: of the network's training; `config.tracker` is not None.
    workdir: the folder of the network.
    title: of the network.
  """

  def __init__(self, config: config_lib.ConfigDict, workdir: paths.Path,
               title: str):
    self._config, self._title = config, title
    self._workdir = paths.as_path(workdir)
    self._writer: Any = None
    self._failed = False

  def truncate(self, step: int) -> None:
    """Starts the tracker's run anew where the run does."""
    path = self._workdir / FILE
    if step == 0 or not paths.exists(path):
      files.write_json(path, dict(identity=uuid.uuid4().hex))

  def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Sends a row, without the values that are not finite."""
    finite = {name: value for name, value in metrics.items()
              if math.isfinite(value)}
    if not self._failed:
      self._guard(lambda: self._open().write(step, split, finite))

  def close(self) -> None:
    """Ends the tracker's run."""
    if self._writer is not None and not self._failed:
      self._guard(self._writer.close)

  def _open(self):
    if self._writer is None:
      entry = writers.writers.find(self._config.tracker, _FIELD)
      self._writer = entry.function(
          self._workdir, title=self._title, config=files.to_json(self._config),
          identity=files.read_json(self._workdir / FILE)['identity'])
    return self._writer

  def _guard(self, function):
    """Calls a function; if it fails, nothing more is sent."""
    try:
      function()
    except Exception as err:  # Whatever a service's library raises.
      self._failed = True
      notes.say(f'{_FIELD}={self._config.tracker!r} has failed and gets no more'
                f' rows of {self._title}: {checks.describe(err)}. The run goes '
                'on; metrics.jsonl has all rows.')


class _Wandb:
  """Weights & Biases; WANDB_MODE, WANDB_PROJECT and others apply."""

  def __init__(self, workdir, title, config, identity):
    import wandb  # An extra.
    self._run = wandb.init(
        project=os.environ.get('WANDB_PROJECT', _PROJECT),
        dir=_local(workdir), id=identity, name=_name(workdir, title),
        resume='allow', config=config, reinit='create_new',
        settings=wandb.Settings(silent=True))

  def write(self, step, split, metrics):
    self._run.log(_tagged(split, metrics), step=step)

  def close(self):
    self._run.finish()


class _Mlflow:
  """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME apply."""

  def __init__(self, workdir, title, config, identity):
    import mlflow  # An extra.
    self._client, self._metric = mlflow.MlflowClient(), mlflow.entities.Metric
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', _PROJECT)
    experiment = self._client.get_experiment_by_name(name)
    number = (experiment.experiment_id if experiment else
              self._client.create_experiment(name))
    found = self._client.search_runs(
        [number], f"tags.`haikd.identity` = '{identity}'")
    if found:
      self._run = found[0].info.run_id
      self._client.update_run(self._run, status='RUNNING')
      return
    self._run = self._client.create_run(
        number, run_name=_name(workdir, title),
        tags={'haikd.identity': identity}).info.run_id
    self._client.log_dict(self._run, config, 'config.json')

  def write(self, step, split, metrics):
    now = time.time_ns() // 10**6
    self._client.log_batch(self._run, [
        # MLflow allows fewer characters in names than haikd.
        self._metric(re.sub(r'[^\w./ :-]', '_', name), value, now, step)
        for name, value in _tagged(split, metrics).items()])

  def close(self):
    self._client.set_terminated(self._run)


class _Trackio:
  """Trackio; TRACKIO_DIR and others apply."""

  def __init__(self, workdir, title, config, identity):
    import trackio  # An extra.
    self._run = trackio.init(
        project=os.environ.get('TRACKIO_PROJECT', _PROJECT),
        name=f'{_name(workdir, title)}-{identity[:8]}', resume='allow',
        config=config, embed=False)

  def write(self, step, split, metrics):
    self._run.log(_tagged(split, metrics), step=step)

  def close(self):
    self._run.finish()


for _package, _kind in dict(
    wandb=_Wandb, mlflow=_Mlflow, trackio=_Trackio).items():
  writers.register_writer(_package, package=_package)(_kind)


def open_tracker(config: config_lib.ConfigDict, workdir: paths.Path,
                 title: str) -> Optional[Tracker]:
  """Returns the Tracker of a config; None if it names none."""
  return Tracker(config, workdir, title) if config.tracker else None


def _tagged(split, metrics):
  return {f'{split}/{name}': value for name, value in metrics.items()}


def _name(workdir, title):
  """Returns the name of a network's run: that of the workdir, and its title."""
  path = pathlib.PurePath(os.fspath(workdir))
  if _FOLDERS.get(title):
    path = path.parent
  name = path.name
  if name.startswith(workdir_lib.SEED):  # All experiments have a seed 0.
    name = f'{path.parent.name} {name}'
  return f'{name} {title}'.strip()


def _local(workdir):
  """Returns the folder for files of the tracker; None in a bucket."""
  return None if paths.is_remote(workdir) else os.fspath(workdir)
