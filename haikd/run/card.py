"""The model card of an exported student."""

from collections.abc import Mapping, Sequence
import json
import pathlib
import re
from typing import Any, Optional

import haikd
from haikd import config as config_lib
from haikd import metrics
from haikd.run import results as results_lib
from haikd.run import writer
from haikd.storage import files
from haikd.storage import paths

# An absolute path, perhaps after a scheme such as `hf:`.
_ABSOLUTE = re.compile(r'(?P<scheme>\w+:|)(?P<path>[/~].*)')


def build(config: config_lib.ConfigDict, workdir: paths.ConcretePath, *,
          parameters: int, library: str, usage: str,
          class_names: Optional[Sequence[str]],
          ignored: Mapping[str, Sequence[str]],
          difference: Optional[float]) -> str:
  """Returns the model card, in Markdown.

  Args:
    config: of the student.
    workdir: of the run, for its results.
    parameters: how many there are.
    library: what loads the folder.
    usage: how to load it, in Markdown.
    class_names: what the outputs are called, or None.
    ignored: by role, the fields and tensors that were ignored when a network
      was read.
    difference: the largest between the outputs of the network and of what was
      loaded again; None if they were not compared.
  """
  how, terms = 'trained on the data alone', 'of its data'
  if config_lib.has_weights(config.teacher):
    teacher = _public(config.teacher.init) or (
        f'{config.teacher.model} of the same run')
    how = f'distilled from `{teacher}`'
    terms = "of its teacher's license and of its data"
  results = _results(workdir)
  lines = [
      '---', f'library_name: {library}', 'tags:', '- distillation',
      '- haikd', '---', '', f'# {workdir.name}', '',
      f'A `{config.student.model}` of {parameters:,} parameters, {how} with '
      f'haikd {haikd.__version__}.', '',
      f'It inherits the terms {terms}.', '',
      '## Use', '', usage]
  if class_names:
    lines += ['The outputs, in order, are those of '
              f'{", ".join(f"`{name}`" for name in class_names)}.', '']
  if difference is not None:
    lines += ['Loaded again, its outputs differ from those of the trained '
              f'network by at most {difference:.2g}.', '']
  for role, names in ignored.items():
    lines += ['These fields and tensors were ignored when the '
              f'{role} was read: {", ".join(f"`{name}`" for name in names)}.',
              '']
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
  scores = metrics.shown({name for row in results.values() for name in row})
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
