"""A trained student as others load it: `--mode=export`."""

import json
import pathlib
import re
from typing import Any, Optional

import numpy as np

import haikd
from haikd import config as config_lib
from haikd import interop
from haikd import metrics
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.engine import mesh as mesh_lib
from haikd.network import network as network_lib
from haikd.run import pretrained
from haikd.run import trainees
from haikd.run import workdir as workdir_lib
from haikd.run import writer
from haikd.storage import checkpoint
from haikd.storage import files
from haikd.storage import paths

FORMATS = ('hf',)
FOLDER = 'export'  # Below the workdir.

# A path from the root, behind what says what it is the path of.
_ABSOLUTE = re.compile(r'(?P<scheme>\w+:|)(?P<path>/.*)')
_ROLES = dict(
    teacher='teacher',
    student_start='student before training',
    student_alone='student trained alone',
    student='**this model**')


def export(config: config_lib.ConfigDict,
           workdir: paths.Path,
           output: Optional[paths.Path] = None) -> paths.Path:
  """Writes the student of a run as a folder that transformers loads.

  Beside weights (the running mean, where one was kept) and config go the files
  of the tokenizer and a model card with the run's config and results. Learned
  alignments and taps stay behind.

  Args:
    config: the run's config.
    workdir: of the run, which has a checkpoint.
    output: the folder to write; `export` below the workdir by default. What is
      there is replaced if it was exported before.

  Returns:
    The folder.

  Raises:
    ConfigError: a model that has no counterpart in transformers.
    DataError: no checkpoint, or a folder that cannot be written.
  """
  workdir = paths.as_path(workdir)
  output = workdir / FOLDER if output is None else paths.as_path(output)
  config = pretrained.resolve(config)
  part = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  workdir_lib.claim(workdir, config, create=False)
  if not checkpoint.has_checkpoint(workdir):
    raise checks.DataError(
        f'exporting.export: workdir must hold a trained student; got {workdir}.'
        ' Train it first, or correct --workdir.')
  trained = part.trained('--workdir', workdir, 'student')
  text, data = part.data.text, part.config.data
  interop.export(
      output,
      model=part.config.student.model,
      options=_options(part),
      params=trained.network.params,
      tokenizer=None if text is None else text.tokenizer,
      card=_card(part, workdir, trained.network),
      classes=data.options.get('classes'),
      scale=_scale(part),
      length=data.options.get('length'))
  return output


def _options(part):
  """Returns the student's options; how many classes it has, the data says."""
  network = part.config.student
  options = network.options.to_dict()
  names = checks.option_names(registry.models[network.model].function)
  if 'num_classes' in names:
    options.setdefault('num_classes', part.data.num_classes)
  return options


def _scale(part):
  """Returns mean and deviation of each channel of images, or None."""
  channels = part.config.student.options.get('channels')
  if channels is None:  # It takes no images.
    return None
  spread = lambda value: tuple(
      float(x) for x in np.broadcast_to(np.asarray(value), (channels,)))
  return spread(part.config.data.mean), spread(part.config.data.std)


def _card(part: trainees.Trainee, workdir: paths.Path,
          network: base.Variables) -> str:
  """Returns the model card, in Markdown."""
  config = part.config
  size = network_lib.count_parameters(network.params)
  teacher = _public(config.teacher.init) or (
      f'{config.teacher.model} of the same run')
  results = _results(workdir)
  lines = [
      '---', 'library_name: transformers', 'tags:', '- distillation',
      '- haikd', '---', '', f'# {workdir.name}', '',
      f'A `{config.student.model}` of {size:,} parameters, distilled from '
      f'`{teacher}` with haikd {haikd.__version__}.', '',
      'It inherits the terms of its teacher\'s license and of its data.', ''
  ]
  if results:
    lines += ['## Results', '',
              f'Measured on the split `{config.evaluation.final}` of the data '
              f'`{config.data.name}`.', '', *_table(results), '']
  lines += ['## Config', '', '```json',
            json.dumps(_public(files.to_json(config)), indent=2), '```', '']
  return '\n'.join(lines)


def _results(workdir):
  path = workdir / writer.RESULT_FILE
  return files.read_json(path) if paths.exists(path) else {}


def _table(results: dict[str, dict[str, Any]]) -> list[str]:
  """Returns results as rows of Markdown: what any of the networks has."""
  scores = [score for score in metrics.SCORES
            if any(score.name in row for row in results.values())]
  titles = ['', 'parameters', *(score.title for score in scores)]
  lines = [_row(titles), _row(['---'] * len(titles))]
  for role, title in _ROLES.items():
    if role in results:
      row = results[role]
      lines.append(_row([title, f'{row["parameters"]:,.0f}'] + [
          score.show(float(row[score.name]))  # JSON has 'NaN' and such.
          if score.name in row else writer.MISSING
          for score in scores]))
  return lines


def _row(cells):
  return f'| {" | ".join(cells)} |'


def _public(value: Any) -> Any:
  """Returns a config in which no path tells of the machine it was made on."""
  if isinstance(value, dict):
    return {name: _public(inner) for name, inner in value.items()}
  if isinstance(value, list):
    return [_public(inner) for inner in value]
  if isinstance(value, str) and (match := _ABSOLUTE.fullmatch(value)):
    return match['scheme'] + pathlib.PurePath(match['path']).name
  return value
