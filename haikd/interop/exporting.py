"""Writes a network as a folder that transformers loads."""

from collections.abc import Callable, Mapping, Sequence
import functools
import pathlib
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
from haikd.interop import originals
from haikd.interop import pretrained_source as pretrained_source_lib
from haikd.interop import rules
from haikd.interop import storing
from haikd.interop import token_ids
from haikd.interop import tokenizer_files
from haikd.interop.families import pooling
from haikd.processes import distributed
from haikd.storage import files
from haikd.storage import folders
from haikd.storage import paths

_FORMAT = 'hf'  # In the manifest of an export.
_DEFAULT_LENGTH = 2048  # Of transformers, for a config without a length.


class _Piece(NamedTuple):
  """A parameter, or one block of a stack, that goes into a tensor."""

  rule: rules.Rule
  array: Any
  block: Optional[int]  # Along the leading axis of a stack; None without one.

  @property
  def spec(self) -> jax.ShapeDtypeStruct:
    """Its shape and dtype."""
    return jax.ShapeDtypeStruct(
        self.array.shape[self.block is not None:], np.dtype(self.array.dtype))

  def read(self) -> np.ndarray:
    """Returns its values as the tensor holds them, gathered if need be."""
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
  """Returns an entry of the leading axis; one program serves all entries."""
  return lax.dynamic_index_in_dim(stack, block, keepdims=False)


def export(folder: paths.Path, *, model: str, options: Mapping[str, Any],
           params: base.ArrayTree,
           tokenizer: Optional[tokenizer_files.TokenizerSource],
           card: Callable[[pathlib.Path], str],
           classes: Optional[Sequence[str]] = None,
           scale: Optional[images.ChannelStatistics] = None,
           length: Optional[int] = None,
           original: Optional[originals.Original] = None,
           teacher: Optional[originals.Original] = None,
           ends: Sequence[int] = ()) -> None:
  """Writes a network as a folder that transformers loads.

  Parameters are written in their dtype, tensor by tensor, so that the host
  never holds all of them. The folder appears when it is complete. All processes
  call this; the first one writes.

  Args:
    folder: a local folder that is empty, missing or an earlier export, which is
      replaced.
    model: the registered model.
    options: of the model.
    params: its Haiku parameters.
    tokenizer: its tokenizer; None for none.
    card: returns the model card, in Markdown, given the folder with all else;
      nothing appears if it raises.
    classes: the names of the classes in the order of their ids; None if they
      are unknown. Then those of the original are written, and placeholders if
      there are none, or not as many as the network's classes.
    scale: the mean and the standard deviation of each channel of images, as
      `interop.describe` returns them; None to leave them out.
    length: of the texts that it was trained on, in tokens; None to write only
      what the options give.
    original: what the network began as, whose fields are kept where the network
      does not contradict them; None for nothing.
    teacher: whose special tokens and way to generate a network has that began
      as nothing; None for those of the tokenizer, as it must be if the teacher
      has another one.
    ends: the ids of the tokens that ended the texts it was trained on, at which
      whoever generates stops.

  Raises:
    ConfigError: transformers has no such network, or the folder holds
      something else.
    DataError: parameters are missing or unknown, or a file cannot be read or
      written.
  """
  family = pretrained_source_lib.family_of(model)
  written = {**family.write_config(options)}
  planned, vocabulary = _plan(family.tensors(options, ()), params)
  if vocabulary:  # The options may give its size before it was pruned.
    written['vocab_size'] = vocabulary
  written['torch_dtype'] = planned[0].spec.dtype.name
  prepared: list[_Prepared] = []

  def prepare():
    folders.check_free(folder, _FORMAT)
    prepared.append(_prepare(
        written, family.LENGTH, model, options, tokenizer, classes, scale,
        length, original, teacher, ends))

  # This raises on all processes before any of them gathers: later the others
  # would wait for a process that is gone.
  distributed.first(prepare)
  if jax.process_index():  # It only takes part in gathering the parameters.
    for tensor in planned:
      tensor.read()
    return
  with folders.appearing(pathlib.Path(folder), _FORMAT) as temporary:
    for name, content in prepared[0].contents.items():
      (temporary / name).parent.mkdir(parents=True, exist_ok=True)
      files.write_json(temporary / name, content)
    tokenizer_files.write(temporary, prepared[0].tokenizer)
    storing.write(temporary, planned)
    files.replace(temporary / 'README.md', card(temporary))


class _Prepared(NamedTuple):
  """All files but weights and card: JSON by name, and the tokenizer's."""

  contents: dict[str, Any]
  tokenizer: tokenizer_files.Files


def _prepare(written, length_field, model, options, tokenizer, classes, scale,
             length, original, teacher, ends) -> _Prepared:
  """Returns what is written beside the weights; arguments as for `export`."""
  renumbering = token_ids.Renumbering(tokenizer and tokenizer.kept_ids)
  first = originals.Files(original, renumbering)
  speaker = first if first.has_config else originals.Files(
      teacher, renumbering)
  classes = first.classes if classes is None else classes
  if classes is not None and len(classes) == len(written.get('id2label', ())):
    written.update(options_lib.write_labels(classes))
  config = first.config(written)
  if length is not None and length_field is not None:
    if not first.has_config:
      config.setdefault(length_field, max(length, _DEFAULT_LENGTH))
    elif options.get('rope_scaling') is None and (
        config.get(length_field, length) < length):
      config[length_field] = length  # A scaling would depend on it.
  collected = tokenizer_files.collect(tokenizer)
  if not first.has_config:
    for ids in (speaker.token_ids(), tokenizer_files.special_ids(collected)):
      config = {**ids, **config}
    if 'vocab_size' in config:  # The default may lie beyond the vocabulary.
      config.setdefault('pad_token_id', None)
  generation = speaker.generation()
  if generation is not None:
    generation = token_ids.with_ends(originals.GENERATION, generation, ends)
  contents = {
      'config.json': token_ids.with_ends('config.json', config, ends),
      **first.others(functools.partial(_others, model), options, scale),
      **({} if generation is None else {originals.GENERATION: generation}),
  }
  return _Prepared(contents, collected)


def _others(model, options, scale) -> dict[str, Any]:
  """Returns the JSON files that follow from options beside the config."""
  others = pooling.write_pooling(model, options)
  if scale is not None:
    others[images.FILE] = images.write_scale(scale, options)
  return others


def _plan(
    network_rules: rules.Tensors, params: base.ArrayTree
) -> tuple[list[storing.PlannedTensor], Optional[int]]:
  """Returns the tensors to write, and the size of the vocabulary."""
  by_parameter = network_rules.by_parameter
  pieces: dict[str, list[_Piece]] = {}
  problems, seen, vocabulary = [], set(), None
  depth = addresses.depth(params)
  for module, parameters in params.items():
    for name, array in parameters.items():
      address = addresses.of(module, name)
      rule = by_parameter.get((address.module, name))
      if rule is None:
        problems.append(f'{address.title}, which transformers does not have')
        continue
      seen.add((address.module, name))
      if rule.vocabulary is not None:
        vocabulary = array.shape[rule.vocabulary]
      if address.stacked:
        for block in range(len(array)):
          number = depth - len(array) + block
          pieces.setdefault(rule.tensor_of(number), []).append(
              _Piece(rule, array, block))
      else:
        pieces.setdefault(rule.tensor_of(address.block), []).append(
            _Piece(rule, array, None))
  for module, name in by_parameter.keys() - seen:
    problems.append(f'no {module}/{name}')
  planned = [_join(*item, problems) for item in pieces.items()]
  if problems:
    raise checks.DataError(
        'params must be those that transformers has for this network; got '
        f'{checks.abbreviate(sorted(problems))}. Give the options that the '
        'network was built with.')
  return planned, vocabulary


def _join(name: str, pieces: list[_Piece],
          problems: list[str]) -> storing.PlannedTensor:
  """Returns the tensor that consists of pieces; adds to problems."""
  pieces = sorted(pieces, key=lambda piece: piece.rule.part or (0, 0))
  rule, spec = pieces[0].rule, pieces[0].spec
  shape, part = list(rule.stored_shape(spec)), rule.part
  parts = part.parts if part else 1
  present = sum(
      piece.rule.part.extent if piece.rule.part else 1 for piece in pieces)
  if present != parts:
    problems.append(f'{present} of {parts} parts of {name}')
  if part is None:
    return storing.PlannedTensor(
        name, jax.ShapeDtypeStruct(shape, spec.dtype), pieces[0].read)
  axis = part.axis
  shape[axis] = shape[axis] // part.extent * parts

  def read():
    return np.concatenate([piece.read() for piece in pieces], axis)

  return storing.PlannedTensor(
      name, jax.ShapeDtypeStruct(shape, spec.dtype), read)
