"""A trained student as others load it: `--mode=export`."""

import inspect
import json
from typing import Any, Optional

import haikd
from haikd import base
from haikd import checkpoint
from haikd import checks
from haikd import config as config_lib
from haikd import files
from haikd import interop
from haikd import network as network_lib
from haikd import parts
from haikd import paths
from haikd import placement
from haikd import pretrained
from haikd import registry
from haikd import workdir as workdir_lib
from haikd import writer

FORMATS = ('hf',)
FOLDER = 'export'  # Below the workdir.

_ROLES = dict(
    teacher='teacher',
    student_start='student before training',
    student_alone='student trained alone',
    student='**this model**')
_PERCENT = ('accuracy', 'agreement', 'top5_agreement', 'f1')


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
  part = parts.build(config, placement.build_mesh(config.mesh))
  workdir_lib.claim(workdir, config, create=False)
  if not checkpoint.has_checkpoint(workdir):
    raise checks.DataError(
        f'exporting.export: workdir must hold a trained student; got {workdir}.'
        ' Train it first, or correct --workdir.')
  trained = part.trained('--workdir', workdir, 'student')
  text = part.data.text
  interop.export(
      output,
      model=part.config.student.model,
      options=_options(part),
      params=trained.network.params,
      tokenizer=None if text is None else text.tokenizer,
      card=_card(part, workdir, trained.network))
  return output


def _options(part):
  """Returns every option of the student, defaults included."""
  network = part.config.student
  parameters = inspect.signature(
      registry.models[network.model].function).parameters
  names = checks.option_names(
      registry.models[network.model].function,
      reserved=('is_training', 'mask'))
  options = {name: parameters[name].default for name in names
             if parameters[name].default is not inspect.Parameter.empty}
  if 'num_classes' in names:
    options['num_classes'] = part.data.num_classes
  return {**options, **network.options.to_dict()}


def _card(part: parts.Part, workdir: paths.Path, network: base.Frozen) -> str:
  """Returns the model card, in Markdown."""
  config = part.config
  size = network_lib.count_parameters(network.params)
  teacher = config.teacher.init or f'a {config.teacher.model} of the same run'
  results = _results(workdir)
  lines = [
      '---', 'library_name: transformers', 'tags:', '- distillation',
      '- haikd', '---', '', f'# {workdir.name}', '',
      f'A `{config.student.model}` of {size:,} parameters, distilled from '
      f'`{_name(teacher)}` with haikd {haikd.__version__}.', '',
      'It inherits the terms of its teacher\'s license and of its data.', ''
  ]
  if results:
    lines += ['## Results', '',
              f'Measured on the split `{config.evaluation.final}` of the data '
              f'`{config.data.name}`.', '', *_table(results), '']
  lines += ['## Config', '', '```json',
            json.dumps(files.to_json(config), indent=2), '```', '']
  return '\n'.join(lines)


def _results(workdir):
  path = workdir / writer.RESULT_FILE
  return files.read_json(path) if paths.exists(path) else {}


def _table(results: dict[str, dict[str, Any]]) -> list[str]:
  """Returns results as rows of Markdown, without `seconds`."""
  names = list(dict.fromkeys(
      name for row in results.values() for name in row if name != 'seconds'))
  lines = ['| | ' + ' | '.join(name.replace('_', ' ') for name in names) + ' |',
           '| --- ' * (len(names) + 1) + '|']
  for role, title in _ROLES.items():
    if role in results:
      cells = [_cell(name, results[role].get(name)) for name in names]
      lines.append(f'| {title} | {" | ".join(cells)} |')
  return lines


def _cell(name, value):
  if value is None:
    return writer.MISSING
  value = float(value)
  if name == 'parameters':
    return f'{value:,.0f}'
  return f'{value:.2%}' if name in _PERCENT else f'{value:.4f}'


def _name(init):
  """Returns what is public of a path: its last part."""
  return init.rstrip('/').rpartition('/')[-1]
