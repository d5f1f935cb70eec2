"""Notices another model on a server, though it has the same name.

The first start of a recording keeps what the model predicts of a few tokens;
each later one asks again, and goes on only with what predicts the same.
"""

import numpy as np

from haikd.core import checks
from haikd.data import pipeline
from haikd.served import client as client_lib
from haikd.served import completions
from haikd.served import prompts as prompts_lib
from haikd.storage import files
from haikd.storage import paths
from haikd.teacher_records import rows as rows_lib

FILE = 'probe.json'

_ROWS, _TOKENS = 8, 64  # Rows that are read for a prompt of so many tokens.
# Batches and kernels of a server move predictions by less than a hundredth.
_MOST = 0.05


def check(folder: paths.ConcretePath, client: client_lib.Client,
          model: completions.Model, data: pipeline.Data, split: str,
          k: int) -> None:
  """Keeps what a model predicts, or compares it with what was kept.

  Args:
    folder: of the records, which has a recipe.
    client: asks the server.
    model: of the server.
    data: of the run.
    split: of the data, which is recorded.
    k: of the records.

  Raises:
    ConfigError: as `completions.predict`.
    DataError: likewise; or the model predicts something else.
  """
  rows = min(_ROWS, data.sizes[split])
  batch = data.pick(split, indices=np.arange(rows), batch_size=rows, shards=1,
                    process_index=0, process_count=1)[0]
  prompt = next(prompts_lib.cut(batch, rows_lib.kept(batch, 2)), None)
  if prompt is None:
    return
  found = completions.predict(client, model, prompt.tokens[:_TOKENS], k)
  path = folder / FILE
  if not paths.exists(path):
    files.write_json(path, dict(ids=found.ids.tolist(),
                                log_probs=found.log_probs.tolist()))
    return
  kept = files.read_json(path)
  with files.explaining_damage(path, 'Remove it to keep what the server '
                               'predicts now'):
    ids, log_probs = (np.array(kept[key]) for key in ('ids', 'log_probs'))
    if not ids.shape == log_probs.shape == found.ids.shape:
      raise ValueError(f'arrays of the shapes {ids.shape} and '
                       f'{log_probs.shape}')
    distance = _distance((ids, log_probs), found[:2])
  if distance > _MOST:
    raise checks.DataError(
        f'{client_lib.FLAG} must serve the model that the records in {folder} '
        f'were begun with; got {client.url}, where {model.name} has changed: '
        f'the total variation of its predictions is {distance:.2f}. Serve the '
        'same weights, or choose another folder.')


def _distance(first, second):
  """Returns the mean total variation over what both know of positions."""
  distances = []
  for row in zip(*first, *second):
    one, other = (dict(zip(ids, np.exp(log_probs)))
                  for ids, log_probs in (row[:2], row[2:]))
    distances.append(sum(abs(one.get(x, 0.0) - other.get(x, 0.0))
                         for x in {*one, *other}) / 2)
  return float(np.mean(distances))
