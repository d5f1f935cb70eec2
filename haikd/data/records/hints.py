"""What to do with files and records that cannot be read as they are."""

from collections.abc import Mapping
from typing import Any, Optional

# Pairs of fields that people keep prompts and answers in.
_PAIRS = (('prompt', 'completion'), ('prompt', 'response'),
          ('prompt', 'chosen'), ('instruction', 'output'),
          ('instruction', 'response'), ('question', 'answer'),
          ('input', 'output'))

# Suffixes of files that are not read, and what to do about them.
_UNREAD = (
    (('.part', '.partial', '.incomplete', '.crdownload', '.download', '.tmp',
      '.aria2'), 'a download that has not ended. Fetch the file again'),
    (('.zip', '.tar', '.tar.gz', '.tgz', '.tar.zst', '.7z', '.rar', '.bz2',
      '.xz', '.lz4'), 'an archive. Unpack it'),
    (('.ndjson', '.jl', '.jsonlines'),
     'JSON lines. Give its name the suffix .jsonl'),
    (('.pq', '.parq'), 'parquet. Give its name the suffix .parquet'),
    (('.feather', '.ipc'), 'Arrow. Give its name the suffix .arrow'),
    (('.md', '.text'), 'text. Give its name the suffix .txt'),
    (('.xlsx', '.xls', '.ods'), 'a spreadsheet. Save it as CSV in UTF-8'),
)


def of_file(name: str) -> Optional[str]:
  """Returns what a file is that is not read, and a remedy; None if unknown.

  Args:
    name: the name of the file.
  """
  return next((hint for suffixes, hint in _UNREAD
               if name.lower().endswith(suffixes)), None)


def of_record(values: Mapping[str, Any]) -> str:
  """Returns which data set reads a record, as a sentence; or ''.

  Args:
    values: the record's values, without the field that was looked for.
  """
  for name, value in values.items():
    if isinstance(value, (list, tuple)) and value and isinstance(
        value[0], Mapping):
      if not {'role', 'from'} & {*value[0]}:
        return (f'The records seem to be in {name!r}: write each of them on a '
                'line of its own.')
      return ("config.data.name='chat' reads messages, with config.data."
              f'options.messages={name!r}.')
  pair = next((pair for pair in _PAIRS if {*pair} <= {*values}), None)
  if pair is None:
    return ''
  joined = (" Join 'instruction' and 'input' to one field before."
            if pair[0] == 'instruction' and values.get('input') else '')
  return ("config.data.name='completions' reads such pairs, with "
          f'config.data.options.prompt={pair[0]!r} and '
          f'completion={pair[1]!r}.{joined}')
