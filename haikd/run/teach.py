"""Records a teacher: `--mode=teach`.

The rows of the training split are cut into shards. What is in a shard depends
on its rows alone, so that one that a kill has cut short is made again as it
would have been.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, Optional

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.data import pipeline
from haikd.engine import mesh as mesh_lib
from haikd.engine import record as record_lib
from haikd.objective import recorded as recorded_lib
from haikd.processes import distributed
from haikd.run import job
from haikd.run import recorded as run_recorded
from haikd.run import recording
from haikd.run import recording_here
from haikd.run import recording_progress
from haikd.run import resolve
from haikd.run import trainees
from haikd.run import workdir as workdir_lib
from haikd.storage import fingerprint
from haikd.storage import paths
from haikd.teacher_records import folder as folder_lib
from haikd.teacher_records import hidden
from haikd.teacher_records import recipe as recipe_lib

# About so many shards are made, to be shared by many processes; but none with
# fewer or more positions than these. The largest have 40 MB of sampled records.
_SHARDS = 64
_SHARD_POSITIONS = (2**15, 2**18)


def teach(config: config_lib.ConfigDict, workdir: paths.Path) -> dict[str, Any]:
  """Records the teacher of a config on its training split.

  A teacher without weights is trained first, in the workdir, as for `train`.

  Args:
    config: a validated config with `config.teacher.records`.
    workdir: of the run.

  Returns:
    The manifest of the records.

  Raises:
    ConfigError: the config cannot work, with records or without.
    DataError: data or files cannot be used, or the folder holds other records.
    StoppedError: SIGTERM has come; complete shards are kept.
  """
  given, workdir = given_of(config), paths.as_path(workdir)
  run_recorded.check_fields(config)
  live: Any = config.copy_and_resolve_references()
  live.teacher.records = config_lib.ConfigDict()
  live.baseline = False
  live = resolve.from_pretrained(live)
  mesh = mesh_lib.build_mesh(live.mesh)
  student, _, teacher = trainees.build_all(live, mesh)
  run_recorded.check_varies(student.data)
  options = config_lib.record_options(given)
  form = _form(student, options)
  student.data.check()
  owner: Any = student.config.copy_and_resolve_references()
  owner.teacher.records = config.teacher.records
  owner.baseline = config.baseline
  with workdir_lib.lock(workdir):
    workdir_lib.claim(workdir, owner)
    trained = job.trained_teacher(student, teacher, workdir)
    frozen = student.program.freeze(trained.network)
    del trained
    recipe = recipe_of(student.data, live.data.train, options,
                       fingerprint.tree_hash(frozen), form)
    predictor = recording_here.Predictor(
        recipe, live, student.program, frozen,
        student.data.sizes[live.data.train])

    def unembedding():
      return hidden.rotated(record_lib.unembedding(
          student.program, frozen, student.data.spec))

    work = recording.Work(folder_lib.place(given['path']), recipe, predictor,
                          student.data, live.data.train)
    return record(
        work, recipe, run_recorded.network_of(live),
        unembedding if options['kind'] == recipe_lib.HIDDEN else lambda: None)


def given_of(config: config_lib.ConfigDict) -> dict[str, Any]:
  """Returns `config.teacher.records`; raises ConfigError if it is empty."""
  given = config_lib.plain(config.teacher.records)
  if not given:
    raise checks.ConfigError(
        'config.teacher.records must say where and what to record with '
        '--mode=teach; got {}. Set it to dict(path=…, kind=…).')
  return given


def recipe_of(data: pipeline.Data, split: str, options: Mapping[str, Any],
              teacher: str, form: record_lib.Predicted) -> recipe_lib.Recipe:
  """Returns what decides the content of records.

  Args:
    data: of the run.
    split: of the data, which is recorded.
    options: kind and options.
    teacher: what identifies it.
    form: of its predictions.
  """
  text = data.text_of('teacher')
  positions = math.prod(data.spec.mask.shape[1:form.axes])
  least, most = _SHARD_POSITIONS
  size = min(max(data.sizes[split] * positions // _SHARDS, least), most)
  return recipe_lib.Recipe(
      options=options, teacher=teacher,
      vocabulary=text.identity if text else '', classes=form.classes,
      axes=form.axes,
      width=form.width if options['kind'] == recipe_lib.HIDDEN else None,
      shard_rows=max(size // positions, 1))


def record(work: recording.Work, recipe: recipe_lib.Recipe,
           network: Mapping[str, Any],
           unembedding: Callable[[], Optional[base.LinearLogits]]
           ) -> dict[str, Any]:
  """Makes what is missing of records, and completes them.

  Args:
    work: makes them.
    recipe: of the records.
    network: what is said of the teacher, for the manifest.
    unembedding: returns that of hidden states, or None.

  Returns:
    The manifest.
  """
  with distributed.stoppable():
    work.run()
  kept = unembedding()  # All processes gather it.
  manifest = distributed.first(lambda: folder_lib.complete(
      work.folder, recipe, work.shards, network, kept))
  if distributed.is_first():
    print(recording_progress.summary(manifest, work.folder))
  return manifest


def _form(student, options) -> record_lib.Predicted:
  """Returns the form of predictions; refuses terms that records don't fit."""
  program, spec = student.program, student.data.spec
  if program.compared.teacher is None:
    raise checks.ConfigError(
        'config.teacher must have weights, or steps to be trained, to be '
        'recorded; got none, and no term that compares with it. Set '
        'config.teacher.init.')
  outputs = program.compared.outputs
  form = record_lib.describe(outputs[1].logits, options['kind'])
  recorded = recorded_lib.Recorded(options, form.classes)
  recorded.check_spec(spec)
  recorded.check(program.compared.terms, outputs[0].logits)
  return form
