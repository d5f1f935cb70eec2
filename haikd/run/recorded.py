"""Opens records of a teacher, and refuses those of another one, or other data.

The teacher itself is not read: its weights may be gone.
"""

from collections.abc import Mapping
from typing import Any, Optional

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import notes
from haikd.data import pipeline
from haikd.engine import sample
from haikd.objective import recorded as recorded_lib
from haikd.storage import files
from haikd.teacher_records import records as records_lib
from haikd.teacher_records import rows as rows_lib

FIELD = recorded_lib.FIELD
SERVED = 'served'  # What the manifest says of a teacher on a server.

_LOOKED_UP = 1000  # Rows, before training.
# What the config says of a teacher that decides its predictions.
_NETWORK = ('model', 'options', 'init', 'init_layers', 'used_classes',
            'precision')


def network_of(config: config_lib.ConfigDict) -> dict[str, Any]:
  """Returns what a config says of its teacher, for the manifest.

  Args:
    config: a resolved config.
  """
  said = {name: config.teacher[name] for name in _NETWORK}
  if not config.teacher.init:  # It is trained on the data of the config.
    said['train'] = config.teacher.train
  return config_lib.plain(config_lib.ConfigDict(said))


def check_fields(config: config_lib.ConfigDict) -> None:
  """Refuses fields that contradict records.

  Args:
    config: of the run.

  Raises:
    ConfigError: assistants.
  """
  if config.assistants:
    raise checks.ConfigError(
        f'{FIELD} must be left out with config.assistants, each of which is '
        f'the teacher of the next; got assistants '
        f'{", ".join(config.assistants)}. Leave one of the two out.')


def check_served(config: config_lib.ConfigDict, where: str) -> None:
  """Refuses a teacher in the config beside one that was on a server.

  Args:
    config: of the run.
    where: what says that it was there.

  Raises:
    ConfigError: the teacher of the config has weights, or is to be trained.
  """
  if config_lib.has_weights(config.teacher):
    teacher = config.teacher
    raise checks.ConfigError(
        f'config.teacher.init must be None and train.steps 0 {where}, since the'
        f' teacher runs on a server; got init={teacher.init!r}, train.steps='
        f'{teacher.train.steps}. Set them so, and give the data its tokenizer.')


def check_varies(data: pipeline.Data) -> None:
  """Refuses data whose examples are others in each epoch.

  Args:
    data: of the run.

  Raises:
    ConfigError: augmentations, or data that is random.
  """
  if data.varies:
    raise checks.ConfigError(
        'config.data must have the same examples in each epoch to be recorded, '
        'since a record is of what the teacher has seen; got augmentations, or '
        'a data set that draws anew. Set config.data.augment to {}, or leave '
        f'{FIELD} out.')


def open_records(config: config_lib.ConfigDict) -> records_lib.Records:
  """Opens the records of a config, which the teacher's fields must fit.

  Args:
    config: a config from `resolve.from_pretrained`.

  Raises:
    ConfigError: other options than those of the records, or another teacher.
    DataError: no records, or not all.
  """
  check_fields(config)
  given = config_lib.plain(config.teacher.records)
  records = records_lib.Records(given['path'])
  _check_same(FIELD, given['path'], config_lib.record_options(given),
              records.recipe.options)
  if SERVED in records.network:
    check_served(config, f'with the records in {given["path"]}')
    return records
  said = network_of(config)
  if records.network['init'] and not said['init']:
    return records  # They are all that is left of the teacher.
  _check_same('config.teacher', given['path'], said, records.network,
              ' If the weights have only been moved, set init to None and give '
              "the data set the teacher's tokenizer.")
  return records


def check_data(records: records_lib.Records, data: pipeline.Data) -> None:
  """Refuses data with another vocabulary, or that varies.

  Args:
    records: of the run.
    data: of the run.

  Raises:
    ConfigError: data that varies.
    DataError: another tokenizer, or another part of its vocabulary.
  """
  check_varies(data)
  text = data.text_of('teacher')
  vocabulary = text.identity if text else ''
  if vocabulary != records.recipe.vocabulary:
    raise checks.DataError(
        'config.data.options must give the tokenizer of the records, with the '
        'same tokens left after pruning; got '
        f'{vocabulary[:12] or "none"}, where it is '
        f'{records.recipe.vocabulary[:12] or "none"}. Record again, or bring '
        'back the tokenizer.')


def check_rows(records: records_lib.Records, data: pipeline.Data,
               config: config_lib.ConfigDict) -> None:
  """Refuses data of whose rows some were not recorded.

  A thousand rows are looked up, from all parts of the training split; all
  others when they are read.

  Args:
    records: of the run.
    data: of the run.
    config: of the run.

  Raises:
    DataError: a row without a record.
  """
  if config.data.options.get('prepare') == 'ahead':
    return  # They are not there yet.
  split = config.data.train
  batches = data.pick(
      split, indices=sample.choose(data.sizes[split], _LOOKED_UP),
      batch_size=_LOOKED_UP // 4, shards=1, process_index=0, process_count=1)
  for number in range(len(batches)):
    batch = batches[number]
    # Padding has no position that counts, and no record.
    is_real = batch.mask.reshape(len(batch.mask), -1).any(axis=1)
    for digest, real in zip(rows_lib.digests(batch), is_real):
      if real:
        records.find(digest)


def describe(config: config_lib.ConfigDict, num_classes: Optional[int],
             ) -> recorded_lib.Recorded:
  """Returns what is known of records that may not be written yet, for a plan.

  Args:
    config: a resolved config with records.
    num_classes: of the data.

  Raises:
    DataError: hidden states that are not recorded yet: nothing else says how
      wide they are.
  """
  options = config_lib.record_options(
      config_lib.plain(config.teacher.records))
  if options['kind'] != 'hidden' and num_classes is not None:
    return recorded_lib.Recorded(options, num_classes)
  return recorded_lib.of_records(open_records(config))


def say(records: records_lib.Records) -> None:
  """Says what a run does not have, since its teacher is not there."""
  notes.say(
      f'the student learns from {records.recipe.options["kind"]} records; the '
      'teacher does not run, and evaluations compare with labels alone.')


def _check_same(field: str, path: str, given: Mapping[str, Any],
                there: Mapping[str, Any], remedy: str = '') -> None:
  # Tuples are lists in the manifest.
  names = [name for name in {**given, **there}
           if files.to_json(given.get(name)) != files.to_json(there.get(name))]
  if names:
    name = names[0]
    raise checks.ConfigError(
        f'{field}.{name} must be that of the records in {path}; got '
        f'{given.get(name)!r}, where it is {there.get(name)!r}. Record again, '
        f'or set it so.{remedy}')
