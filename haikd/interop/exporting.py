"""A network as a folder that transformers loads."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import functools
import pathlib
import shutil
import tempfile
from typing import Any, NamedTuple, Optional

import jax
from jax import lax
from jax.experimental import multihost_utils
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.interop import addresses
from haikd.interop import images
from haikd.interop import options as options_lib
from haikd.interop import pretrained_source as pretrained_source_lib
from haikd.interop import rules
from haikd.interop import storing
from haikd.processes import distributed
from haikd.storage import files
from haikd.storage import paths

_TOKENIZER = ('tokenizer.json', 'tokenizer_config.json',
              'special_tokens_map.json', 'added_tokens.json', 'vocab.txt',
              'vocab.json', 'merges.txt', 'chat_template.jinja')
_SPECIAL = ('bos', 'eos', 'pad')  # Whose numbers a config has.
_LENGTH = 2048  # Which transformers takes where a config has none.


class _Piece(NamedTuple):
  """A parameter, or one block of it, as it goes into a tensor."""

  rule: rules.Rule
  array: Any
  block: Optional[int]  # Along the leading axis of a stack.

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape[self.block is not None:]

  def read(self) -> np.ndarray:
    array = self.array
    if self.block is not None:
      array = _entry(array, self.block)
    if getattr(array, 'is_fully_addressable', True) or (
        array.is_fully_replicated):
      return self.rule.layout.store(np.asarray(array))
    array = multihost_utils.process_allgather(array, tiled=True)
    return self.rule.layout.store(np.asarray(array))


@jax.jit
def _entry(stack, block):
  """Returns an entry of the leading axis; one program serves for all."""
  return lax.dynamic_index_in_dim(stack, block, keepdims=False)


def export(folder: paths.Path, *, model: str, options: Mapping[str, Any],
           params: base.ArrayTree, tokenizer: Optional[paths.Path],
           card: str, classes: Optional[Sequence[str]] = None,
           scale: Optional[images.Scale] = None,
           length: Optional[int] = None) -> None:
  """Writes a network as a folder that transformers loads.

  Parameters are written as they are, tensor by tensor, so that the host never
  holds all of them. The folder appears when it is complete. Call it on all
  processes; the first one writes.

  Args:
    folder: a local folder that is empty, not there, or from an earlier export,
      which it takes the place of.
    model: the registered model.
    options: of it.
    params: its Haiku parameters.
    tokenizer: a folder with `tokenizer.json`, or that file; None for none.
    card: the model card, in Markdown.
    classes: the names of the classes in the order of their numbers, which are
      written where the network has as many; None for their numbers.
    scale: the mean and the standard deviation of each channel of images, as
      `interop.describe` returns them; None to say nothing of them.
    length: of the texts that it was trained on, in tokens; None to write only
      what the options say.

  Raises:
    ConfigError: transformers has no such network, or the folder holds
      something else.
    DataError: parameters are missing or left over, or a file cannot be read or
      written.
  """
  if paths.is_remote(folder):
    raise checks.ConfigError(
        f'interop.export: folder must be local; got {folder}. Export to this '
        'machine, and copy it.')
  folder = pathlib.Path(folder)
  family = pretrained_source_lib.family_of(model)
  config = {**family.write_config(options)}
  planned, vocabulary = _plan(family.tensors(options, ()), params)
  if vocabulary:  # The options may tell of one that was pruned.
    config['vocab_size'] = vocabulary
  config['torch_dtype'] = planned[0].like.dtype.name
  if classes is not None and len(classes) == len(config.get('id2label', ())):
    config.update(options_lib.write_labels(classes))
  if length is not None and family.LENGTH is not None:
    config.setdefault(family.LENGTH, max(length, _LENGTH))
  extra = {}
  if options.get('head') == 'embedding':
    from haikd.interop.families import pooling
    extra = pooling.write_pooling(options)
  if scale is not None:
    extra[images.FILE] = images.write_scale(scale, options)
  # Before the first waits for what others gather, or they for it.
  tokens, special = distributed.first(
      functools.partial(_prepare, folder, tokenizer))
  if jax.process_index():  # It only helps to gather what is to be written.
    for tensor in planned:
      tensor.read()
    return
  for name, number in special.items():
    config.setdefault(name, number)
  with _appearing(folder) as temporary:
    files.write_json(temporary / 'config.json', config)
    for name, content in extra.items():
      (temporary / name).parent.mkdir(parents=True, exist_ok=True)
      files.write_json(temporary / name, content)
    for name, path in tokens.items():
      shutil.copyfile(path, temporary / name)
    files.replace(temporary / 'README.md', card)
    storing.write(temporary, planned)


def _plan(found: rules.Tensors,
          params: base.ArrayTree) -> tuple[list[storing.Tensor], Optional[int]]:
  """Returns what is to be written, and the size of the vocabulary."""
  known = {(rule.module, rule.name): rule for rule in found.rules}
  pieces, problems, seen, vocabulary = {}, [], set(), None
  for module, parameters in params.items():
    for name, array in parameters.items():
      address = addresses.of(module, name)
      rule = known.get((address.module, name))
      if rule is None:
        problems.append(f'{address.title}, which has no place')
        continue
      seen.add((address.module, name))
      blocks = range(len(array)) if address.stacked else (None,)
      if rule.vocabulary is not None:
        vocabulary = array.shape[rule.vocabulary]
      for block in blocks:
        number = block if address.stacked else address.block
        title = rule.tensor.replace('{layer}', str(number))
        pieces.setdefault(title, []).append(_Piece(rule, array, block))
  for module, name in known.keys() - seen:
    problems.append(f'no {module}/{name}')
  planned = [_whole(*item, problems) for item in pieces.items()]
  if problems:
    raise checks.DataError(
        'interop.export: params must be all that transformers has of this '
        f'network, and no more; got {", ".join(sorted(problems)[:5])}. Give '
        'the options that it was built with.')
  return planned, vocabulary


def _whole(name, pieces, problems):
  """Returns the tensor that pieces make."""
  pieces = sorted(pieces, key=lambda piece: piece.rule.part or (0, 0))
  first, dtype = pieces[0], np.dtype(pieces[0].array.dtype)
  # Takes no memory: all numbers are the same one.
  dummy = np.broadcast_to(np.zeros((), dtype), first.shape)
  shape = list(first.rule.layout.store(dummy).shape)
  part = first.rule.part
  if len(pieces) != (part.count if part else 1):
    problems.append(f'{len(pieces)} parts of {name}')
  if part is None:
    return storing.Tensor(name, jax.ShapeDtypeStruct(shape, dtype), first.read)
  shape[part.axis] *= part.count

  def read():
    return np.concatenate([piece.read() for piece in pieces], part.axis)

  return storing.Tensor(name, jax.ShapeDtypeStruct(shape, dtype), read)


def _prepare(folder, tokenizer):
  """Checks what there is; returns files of the tokenizer and its numbers."""
  _check_folder(folder)
  tokens = _tokenizer_files(tokenizer)
  special = _special_tokens(tokens)
  return {name: str(path) for name, path in tokens.items()}, special


def _tokenizer_files(path) -> dict[str, pathlib.Path]:
  """Returns the files of a tokenizer by their names."""
  if path is None:
    return {}
  path = pathlib.Path(path)
  found = {name: path / name for name in _TOKENIZER
           if (path / name).is_file()}
  if path.is_file() and path.suffix == '.json':
    found = {_TOKENIZER[0]: path}
  if not found:
    raise checks.DataError(
        'interop.export: tokenizer must be a folder with tokenizer.json, or '
        f'that file; got {path}. Give the one that the data was prepared with.')
  return found


def _special_tokens(tokens) -> dict[str, Optional[int]]:
  """Returns the numbers of special tokens, None where the files have none.

  A config that leaves them out has those of its family's first tokenizer.
  """
  if not {'tokenizer.json', 'tokenizer_config.json'} <= set(tokens):
    return {}
  said = files.read_json(tokens['tokenizer_config.json'])
  added = files.read_json(tokens['tokenizer.json']).get('added_tokens', ())
  numbers = {token['content']: token['id'] for token in added}
  found = {}
  for name in _SPECIAL:
    token = said.get(f'{name}_token')
    token = token.get('content') if isinstance(token, Mapping) else token
    found[f'{name}_token_id'] = numbers.get(token)
  return found


def _check_folder(folder):
  """Refuses a folder that holds anything but an earlier export."""
  if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
    return
  if folder.is_dir() and storing.is_ours(folder):
    return
  raise checks.ConfigError(
      'interop.export: folder must be empty, not there, or an earlier export; '
      f'got {folder}. Choose another, or remove it.')


@contextlib.contextmanager
def _appearing(folder) -> Iterator[pathlib.Path]:
  """Gives a folder to write in, which takes the other's place at the end."""
  folder = folder.absolute()
  place = None
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # It is open to no one else, so that the folder is made within.
    place = pathlib.Path(
        tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    temporary, old = place / 'new', place / 'old'
    temporary.mkdir()
    yield temporary
    if folder.exists():
      folder.rename(old)
    try:
      temporary.rename(folder)
    except OSError:
      if old.exists():
        old.rename(folder)
      raise
  except OSError as err:
    raise checks.DataError(
        f'interop.export: folder must be writable; got {folder} '
        f'({checks.one_line(err)}). Make room, or choose another.') from err
  finally:
    if place is not None:
      shutil.rmtree(place, ignore_errors=True)
