"""Shows what networks get: images as PNG, texts decoded, numbers as they are.

All are HTML.
"""

import base64
import io
from typing import Any, Optional

import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.data import pipeline
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.report import page

_MAX_SIDE = 160  # Pixels of an image.
_MAX_LETTERS = 360  # Of the texts of an example.
_MAX_NUMBERS = 12


class Shown:
  """Some examples of a split, to be shown.

  Attributes:
    batch: the examples.
    is_image: whether they are images.

  Args:
    config: of the run.
    data: its data.
    indices: of the examples in the final split.
  """

  def __init__(self, config: config_lib.ConfigDict, data: pipeline.Data,
               indices: np.ndarray):
    self._scale = data.views.teacher.scale  # It is the teacher's view.
    self._has_images = data.image_dtype is not None
    self.batch: base.Batch = data.pick(
        config.evaluation.final, indices=indices, batch_size=len(indices),
        shards=1, process_index=0, process_count=1)[0]
    self._texts = {role: text for role in ('teacher', 'student')
                   if (text := data.text_of(role))}
    self._tokenizers = {role: tokenizer_lib.load(text.tokenizer)
                        for role, text in self._texts.items()}
    self.is_image = self.image(0) is not None

  def html(self, number: int) -> str:
    """Returns an example: an image, its text or its numbers."""
    image = self.image(number)
    if image is not None:
      kind = ' class="small"' if max(image.shape) < _MAX_SIDE // 2 else ''
      return f'<img{kind} alt="example" src="{png(image)}">'
    if self._tokenizers:
      return ''.join(f'<p>{page.escape(x)}</p>' for x in self.texts(number))
    values = np.asarray(_first_of(self.batch.inputs)[number]).ravel()
    shown = ', '.join(f'{x:.4g}' for x in values[:_MAX_NUMBERS].tolist())
    rest = ', …' if values.size > _MAX_NUMBERS else ''
    return f'<code>{page.escape(shown + rest)}</code>'

  def texts(self, number: int) -> list[str]:
    """Returns the texts of an example, shortened."""
    tokens, mask = self._tokens(number, 'teacher')
    texts = [self.decode(row[keep], skip_special=True).strip()
             for row, keep in zip(tokens, mask)]
    limit = _MAX_LETTERS // len(texts)
    return [x if len(x) <= limit else f'{x[:limit]}…' for x in texts]

  def decode(self, ids: np.ndarray, *, skip_special: bool = False) -> str:
    """Returns the text of the teacher's ids, or them without a tokenizer."""
    if not self._tokenizers:
      return ' '.join(map(str, np.ravel(ids).tolist()))
    return self._tokenizers['teacher'].decode(
        self._full(ids, 'teacher'), skip_special=skip_special)

  def pieces(self, number: int, role: str) -> dict[int, str]:
    """Returns the tokens of an example's first text, by position.

    Args:
      number: of the example.
      role: 'teacher' or 'student', whose tokens they are.

    Returns:
      The positions that are not padding; none if inputs are no texts.
    """
    if role not in self._tokenizers:
      return {}
    tokens, mask = self._tokens(number, role)
    positions = np.flatnonzero(mask[0])
    ids = self._full(tokens[0][positions], role).tolist()
    names = (self._tokenizers[role].token_of(i) or str(i) for i in ids)
    return dict(zip(positions.tolist(), names))

  def _full(self, ids, role):
    """Returns ids as they were before the vocabulary was pruned."""
    kept = self._texts[role].kept_ids
    ids = np.ravel(ids)
    return ids if kept is None else np.asarray(kept)[ids]

  def _tokens(self, number, role):
    """Returns the tokens and mask of an example's texts, `[S, N]`."""
    view = self.batch.view(role)
    tokens = np.asarray(_first_of(view.inputs)[number])
    length = tokens.shape[-1]
    return tokens.reshape(-1, length), np.asarray(
        view.mask[number]).reshape(-1, length)

  def image(self, number: int) -> Optional[np.ndarray]:
    """Returns an example in [0, 1], `[h, w, C]`; None if it is no image."""
    value = np.asarray(_first_of(self.batch.view('teacher').inputs)[number])
    if value.ndim != 3 or value.shape[-1] not in (1, 3, 4) or (
        value.dtype.kind != 'f'):
      return None
    if self._has_images:
      value = value * self._scale.std + self._scale.mean
    if value.min() < -1e-3 or value.max() > 1 + 1e-3:
      value = (value - value.min()) / max(np.ptp(value), 1e-12)
    return np.clip(value, 0, 1)


def png(image: np.ndarray) -> str:
  """Returns an image as a data URI.

  Args:
    image: `[h, w, C]` or `[h, w]`, from 0 to 1.
  """
  from PIL import Image  # Slow to import.
  pixels = np.asarray(np.round(image * 255), np.uint8)
  if pixels.ndim == 3 and pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  picture = Image.fromarray(pixels)
  if max(picture.size) > _MAX_SIDE:
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
  content = io.BytesIO()
  picture.save(content, format='png', optimize=True)
  encoded = base64.b64encode(content.getvalue()).decode()
  return f'data:image/png;base64,{encoded}'


def _first_of(inputs: Any) -> np.ndarray:
  """Returns the image, the tokens, or else the first input."""
  if not isinstance(inputs, dict):
    return inputs
  for key in ('image', 'tokens', *inputs):
    if key in inputs:
      return inputs[key]
  return np.zeros((0,))
