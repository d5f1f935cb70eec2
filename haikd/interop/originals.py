"""The files of the model that a student began as, for its export.

What no logit depends on is in no option: the longest text, special tokens, how
to generate, dropout. An export begins with the files of the original, and only
what the student has changed is changed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import folders
from haikd.interop import images
from haikd.interop import inert_fields
from haikd.interop import options as options_lib
from haikd.interop import pretrained_source
from haikd.interop import token_ids
from haikd.storage import files

GENERATION = 'generation_config.json'

# What names the original's own place or files, or how its tensors are coded.
_LEFT_OUT = ('_name_or_path', '_commit_hash', 'auto_map',
             'quantization_config', 'quantization', 'compression_config')
# Fields that replace one another: if one changes, the others go.
_ALTERNATIVES = (('rope_theta', 'rope_scaling', 'rope_parameters'),)
_DTYPES = ('dtype', 'torch_dtype')
# Files that no option decides on.
_COPIED = ('config_sentence_transformers.json',)


class Original(NamedTuple):
  """What a student began as.

  Attributes:
    init: `hf:<folder>` or `gguf:<file>`.
    layers: which of its blocks the student took; None for all.
    ignore: as for `interop.describe`.
  """

  init: str
  layers: Optional[Sequence[int]] = None
  ignore: Iterable[str] = ()


class Files:
  """The files of an original, with the ids of a pruned vocabulary.

  Args:
    original: the original; None for a student that began as none.
    renumbering: of the vocabulary.
  """

  def __init__(self, original: Optional[Original],
               renumbering: token_ids.Renumbering):
    self._original, self._renumbering = original, renumbering
    self._folder = self._pretrained = None
    self._content: dict[str, Any] = {}
    if original is None:
      return
    path = pretrained_source.path_of(original.init)
    self._pretrained = pretrained_source.describe(
        original.init, ignore=original.ignore)
    if path.is_dir():
      self._folder = path
      self._content = fields_lib.read_object(path / folders.CONFIG)

  @property
  def has_config(self) -> bool:
    """Whether the original has a `config.json`."""
    return self._folder is not None

  @property
  def classes(self) -> Optional[tuple[str, ...]]:
    """The names of the original's classes; None if they are unknown."""
    return self._pretrained and self._pretrained.classes

  def config(self, written: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config.json`, which means the same as the written fields.

    Args:
      written: the fields that follow from the student's options.
    """
    if not self.has_config:
      return dict(written)
    content = self._renumbering.fields(folders.CONFIG, {
        name: value for name, value in self._content.items()
        if name not in _LEFT_OUT})
    result = self._start(content, written)
    # XLM-RoBERTa, say, is a RoBERTa under another name, which it keeps.
    if result['model_type'] == written['model_type']:
      result['architectures'] = written['architectures']
    dtype = next((name for name in _DTYPES if name in content), _DTYPES[-1])
    for name in _DTYPES:
      result.pop(name, None)
    result[dtype] = written[_DTYPES[-1]]
    return result

  def token_ids(self) -> dict[str, Any]:
    """Returns the fields of `config.json` that hold ids of special tokens."""
    return self._renumbering.fields(folders.CONFIG, {
        name: value for name, value in self._content.items()
        if name.endswith('_token_id')})

  def generation(self) -> Optional[dict[str, Any]]:
    """Returns `generation_config.json`; None if there is none."""
    content = self._read(GENERATION)
    if not isinstance(content, dict):
      return None
    return self._renumbering.fields(GENERATION, content)

  def others(self, make: Callable[..., Mapping[str, Any]],
             options: Mapping[str, Any],
             scale: Optional[images.ChannelStatistics]) -> dict[str, Any]:
    """Returns the contents of other JSON files.

    Args:
      make: `(options, scale) -> {name: content}`.
      options: of the student.
      scale: of its images, or None.
    """
    written = make(options, scale)
    if self._pretrained is None or not self.has_config:
      return dict(written)
    previous = make(self._pretrained.options, self._pretrained.scale)
    result = {name: content for name in _COPIED
              if (content := self._read(name)) is not None}
    for name, after in written.items():
      before = self._read(name)
      if before is not None and after == previous.get(name):
        after = before
      elif isinstance(before, dict) and isinstance(after, dict):
        after = {**before, **_changes(after, previous.get(name, {}))}
      result[name] = after
    return result

  def _read(self, name):
    """Returns the content of a JSON file of the original; None without it."""
    path = self._folder and self._folder / name
    return None if path is None or not path.exists() else (
        files.read_json(path))

  def _start(self, content, written):
    """Returns the original's fields with what the student has changed."""
    inert = {name: value for name, value in content.items()
             if name in inert_fields.NAMES}
    previous = self._written()
    if previous['model_type'] != written['model_type']:
      return {**inert, **written}
    changes = _changes(written, previous)
    for group in _ALTERNATIVES:
      if not changes.keys().isdisjoint(group):
        content = {name: value for name, value in content.items()
                   if name not in group}
        changes.update({name: written[name] for name in group
                        if name in written})
    changed = {name: value
               for name, value in {**self._cut(content), **changes}.items()
               if name in written or name not in previous}
    # A field that the original leaves to its default may have another default
    # beside the changed ones.
    more = {name: value for name, value in written.items()
            if name not in changed}
    meant = _meaning(written)
    for added in ({}, *({name: value} for name, value in more.items()), more):
      if _meaning({**changed, **added}) == meant:
        return {**changed, **added}
    return {**inert, **written}

  def _written(self):
    """Returns the fields that follow from the options of the original."""
    pretrained = self._pretrained
    family = pretrained_source.family_of(pretrained.model)
    written = {**family.write_config(pretrained.options)}
    if pretrained.vocabulary:
      written['vocab_size'] = pretrained.vocabulary
    if pretrained.classes is not None:
      written.update(options_lib.write_labels(pretrained.classes))
    return written

  def _cut(self, content):
    """Returns fields with the entries of the blocks that were taken."""
    layers, depth = self._original.layers, self._pretrained.options['depth']
    if layers is None:
      return content
    return {
        name: [value[i] for i in layers]
        if isinstance(value, list) and len(value) == depth and
        name not in inert_fields.NAMES else value
        for name, value in content.items()
    }


def _changes(written, previous):
  """Returns the fields that the student has changed."""
  return {name: value for name, value in written.items()
          if name not in previous or previous[name] != value}


def _meaning(config):
  """Returns the options that a config means; None if it cannot be read."""
  fields = fields_lib.Fields(
      folders.CONFIG, config, ignore=fields_lib.Ignore(entries='*'))
  try:
    return pretrained_source.read_config(fields)
  except (checks.DataError, checks.ConfigError):
    return None
