"""Exports a trained student for other libraries: `--mode=export`."""

import json
import os
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
from haikd.core import tasks
from haikd.engine import mesh as mesh_lib
from haikd.network import network as network_lib
from haikd.run import resolve
from haikd.run import results as results_lib
from haikd.run import trainees
from haikd.run import two_tokenizers
from haikd.run import workdir as workdir_lib
from haikd.run import writer
from haikd.storage import checkpoint
from haikd.storage import files
from haikd.storage import paths

FORMATS = ('hf',)
FOLDER = 'export'  # Below the workdir.

# An absolute path, perhaps after a scheme such as `hf:`.
_ABSOLUTE = re.compile(r'(?P<scheme>\w+:|)(?P<path>/.*)')


def export(config: config_lib.ConfigDict,
           workdir: paths.Path,
           output: Optional[paths.Path] = None) -> paths.Path:
  """Writes the student of a run as a folder that transformers loads.

  The folder holds weights (the running mean, if one was kept), config, the
  files of the tokenizer, and a model card with the run's config and results.
  Learned alignments and taps are not exported.

  Args:
    config: the run's config.
    workdir: the workdir of the run, which has a checkpoint.
    output: the folder to write; `export` below the workdir by default. An
      earlier export there is replaced.

  Returns:
    The folder.

  Raises:
    ConfigError: the model has no counterpart in transformers.
    DataError: there is no checkpoint, or the folder cannot be written.
  """
  workdir = paths.as_path(workdir)
  output = workdir / FOLDER if output is None else paths.as_path(output)
  config = resolve.from_pretrained(config)
  student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  workdir_lib.claim(workdir, student.config, create=False)
  if not checkpoint.has_checkpoint(workdir):
    raise checks.DataError(
        f'--workdir must hold a trained student; got {workdir}. Train it '
        'first, or correct --workdir.')
  trained = student.trained('--workdir', workdir, 'student')
  data, text = student.config.data, student.data.text_of('student')
  interop.export(
      output,
      model=student.config.student.model,
      options=_options(student),
      params=trained.network.params,
      tokenizer=tokenizer_of(student),
      card=_card(student, workdir, trained.network),
      classes=data.options.get('classes'),
      scale=_scale(student),
      length=data.options.get('length'),
      original=original_of(student.config.student),
      teacher=speaker_of(student),
      ends=text.ends if text else ())
  return output


def original_of(network: Any) -> Optional[interop.Original]:
  """Returns the pretrained weights that a network began as.

  It may have begun as the student of another run, which in turn began as them.

  Args:
    network: the fields of `haikd.config.network()`.

  Returns:
    The weights; None if it began as none.
  """
  init, layers = network.init, network.init_layers
  ignore = network.init_options.ignore
  seen: set[str] = set()
  while init and not interop.is_pretrained(init) and init not in seen:
    seen.add(init)
    path = paths.as_path(init) / workdir_lib.CONFIG_FILE
    if not paths.exists(path):
      return None
    # A run from before a field has its default.
    student = {**config_lib.network().to_dict(),
               **files.read_json(path)['student']}
    init, layers = student['init'], student['init_layers']
    ignore = student['init_options']['ignore']
  if not init or init in seen:
    return None
  return interop.Original(init, layers, ignore)


def speaker_of(student: trainees.Trainee) -> Optional[interop.Original]:
  """Returns the teacher if it has the student's ids of special tokens."""
  texts = [student.data.text_of(role) for role in ('teacher', 'student')]
  tokenizers = {text and text.tokenizer for text in texts}
  return (original_of(student.config.teacher) if len(tokenizers) == 1 else
          None)


def tokenizer_of(
    student: trainees.Trainee) -> Optional[interop.TokenizerSource]:
  """Returns the tokenizer of a student's texts; None without texts."""
  text = student.data.text_of('student')
  if text is None:
    return None
  options = student.config.data.options
  original = options.get(two_tokenizers.OPTION) or options.get('tokenizer')
  if original is not None:
    # Not the tokenizer inside of a GGUF file, nor one in a bucket.
    original = os.path.expanduser(original)
    original = original if os.path.exists(original) else None
  return interop.TokenizerSource(text.tokenizer, original, text.kept_ids)


def _options(student):
  """Returns the student's options with its number of outputs."""
  network = student.config.student
  options = config_lib.plain(network.options)
  names = checks.option_names(registry.models[network.model].function)
  if 'num_classes' in names:
    data = student.data
    options.setdefault('num_classes', tasks.count_outputs(
        data.task, data.spec.labels, data.num_classes))
  return options


def _scale(student):
  """Returns mean and standard deviation by channel of images, or None."""
  channels = student.config.student.options.get('channels')
  if channels is None:  # The student takes no images.
    return None
  by_channel = lambda value: tuple(
      float(x) for x in np.broadcast_to(np.asarray(value), (channels,)))
  data = student.config.data
  return by_channel(data.mean), by_channel(data.std)


def _card(student: trainees.Trainee, workdir: paths.ConcretePath,
          network: base.Variables) -> str:
  """Returns the model card, in Markdown."""
  config = student.config
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
  for role in ('teacher', 'student'):
    original = original_of(config[role])
    if original is not None and original.ignore:
      names = ', '.join(f'`{name}`' for name in original.ignore)
      lines += [f'These fields and tensors were ignored when the {role} was '
                f'read: {names}.', '']
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
  """Returns results as rows of Markdown, with the scores of any network."""
  scores = [score for score in metrics.scores()
            if any(score.name in row for row in results.values())]
  titles = ['', 'parameters', *(score.title for score in scores)]
  lines = [_row(titles), _row(['---'] * len(titles))]
  for network in results_lib.ROWS:
    if network.name in results:
      row = results[network.name]
      lines.append(_row([network.card_title, f'{row["parameters"]:,.0f}'] + [
          score.show(float(row[score.name]))  # JSON holds NaN as a string.
          if score.name in row else writer.MISSING
          for score in scores]))
  return lines


def _row(cells):
  return f'| {" | ".join(cells)} |'


def _public(value: Any) -> Any:
  """Returns a config with only the last part of each absolute path."""
  if isinstance(value, dict):
    return {name: _public(inner) for name, inner in value.items()}
  if isinstance(value, list):
    return [_public(inner) for inner in value]
  if isinstance(value, str) and (match := _ABSOLUTE.fullmatch(value)):
    return match['scheme'] + pathlib.PurePath(match['path']).name
  return value
