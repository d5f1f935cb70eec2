"""The decorator that makes a function a loss, and what it guarantees."""

from collections.abc import Callable
import functools
import inspect
from typing import Optional

import jax
import jax.numpy as jnp

from haikd import attention
from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.core import registry
from haikd.losses import chunks


def register_loss(name: Optional[str] = None,
                  *,
                  on: str,
                  example: Optional[dict[str, tuple[int, ...]]] = None,
                  relational: bool = False,
                  any_width: bool = False,
                  additive: bool = False,
                  by_head: bool = False,
                  replace: bool = False) -> Callable[[Callable], Callable]:
  """Registers a function `(student, teacher, *, mask, **options) -> LossSum`.

  The registered function is guarded, so that a loss of three lines is as safe
  as one of thirty. Before it runs, logits or maps that were not computed yet
  are materialised, student and teacher are cast to float32, and whatever stands
  behind the mask is replaced by zeros, for the gradient as well. Afterwards its
  result is checked. Shapes and the mask's dtype are checked while tracing.

  Args:
    name: what configs call it; the function's own name by default.
    on: what it eats: 'logits', 'features', 'attention', or any tap's name.
    example: `{argument: shape}` from which the contract test makes its inputs,
      for example `dict(student=(2, 3, 5), mask=(2, 3))`; a missing `teacher`
      has the student's shape.
    relational: whether examples are related to one another; the step then
      gathers the batch over all devices before it calls the loss.
    any_width: whether the last axes of student and teacher may differ, as they
      may where each is compared with itself first. Such a loss gets its inputs
      unaligned unless a config says otherwise.
    additive: whether it is a sum over positions, or over the rows of maps, each
      of which could be told alone, and its count one of `mask` and labels
      alone. Of logits or maps that were not computed yet, such a loss gets a
      piece after the other, and neither they nor their gradient are ever whole.
      A piece of maps lacks keys that none of its queries may look at: what is
      divided by their number is no such sum.
    by_head: of an additive loss on maps, whether it is a sum over heads too. A
      piece may then hold some heads alone, which is faster.
    replace: whether it may take the place of another of that name.

  Returns:
    A decorator that registers and returns the guarded function. It raises
    ConfigError if the name is taken, or the function's parameters are others.
  """

  def decorate(function: Callable) -> Callable:
    title = name or function.__name__
    _check_parameters(function)
    if additive and relational:
      raise checks.ConfigError(
          'losses.register_loss: a loss must be additive or relational, not '
          f'both; got {title!r} of {function.__module__}. What relates '
          'examples to one another is no sum over positions.')
    if by_head and not (additive and on == 'attention'):
      raise checks.ConfigError(
          'losses.register_loss: a loss by_head must be additive, on '
          f'attention; got additive={additive}, on={on!r} of {title!r} in '
          f'{function.__module__}. Of others nothing is cut by head.')
    guarded = _guard(function, f'losses.{title}', on, any_width=any_width,
                     additive=additive, by_head=by_head)
    entry = registry.LossEntry(guarded, on, example, relational, any_width,
                               additive, function.__module__)
    registry.losses.add(title, entry, replace=replace)
    return guarded

  return decorate


def _check_parameters(function: Callable) -> None:
  """Raises ConfigError unless a function begins as every loss does."""
  signature = inspect.signature(function)
  parameters = tuple(signature.parameters.values())
  positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
  mask = signature.parameters.get('mask')
  if (tuple(p.name for p in parameters[:2]) != ('student', 'teacher') or
      any(p.kind is not positional for p in parameters[:2]) or
      mask is None or
      mask.kind not in (positional, inspect.Parameter.KEYWORD_ONLY)):
    raise checks.ConfigError(
        'losses.register_loss: a loss must take student, teacher, and the '
        f'keyword mask; got {function.__name__}{signature} of '
        f'{function.__module__}. Write `def {function.__name__}(student, '
        'teacher, *, mask, …):`.')


def get_loss(name: str) -> Callable:
  """Returns the registered loss of that name.

  Args:
    name: a name from `loss_names()`.

  Returns:
    The guarded function.

  Raises:
    ConfigError: no loss has that name; the closest is named.
  """
  return registry.losses[name].function


def loss_names() -> tuple[str, ...]:
  """Returns the names of all registered losses in alphabetical order."""
  return registry.losses.names()


def _guard(function: Callable, where: str, on: str, *, any_width: bool,
           additive: bool, by_head: bool) -> Callable:
  parameters = inspect.signature(function).parameters
  takes_labels = 'labels' in parameters
  needs_teacher = parameters['teacher'].default is inspect.Parameter.empty
  # Labels are of positions or examples, as a block is not.
  knows_blocks = on == 'attention' and additive and not takes_labels

  def in_chunks(student, teacher, mask, labels, options):
    one = functools.partial(guarded, **options)
    total, (found,) = chunks.weighted(
        (one,), jnp.ones(1), student, teacher, mask=mask, labels=labels)
    return base.LossSum(total, found.count)

  @functools.wraps(function)
  def guarded(student, teacher=None, *, mask, labels=None, **options):
    checks.check_mask(mask)
    if additive and isinstance(student, base.LinearLogits):
      return in_chunks(student, teacher, mask, labels, options)
    in_blocks = knows_blocks and all(
        isinstance(x, (base.QueryKey, attention.MeanMaps))
        for x in (student, teacher) if x is not None)
    prepare = _prepare_blocks if in_blocks else _prepare
    student = prepare(where, 'student', student, mask, on)
    if teacher is None and needs_teacher:
      raise TypeError(f'{where}: teacher must be given; got teacher=None. Of '
                      'a loss without one, make `teacher=None` the default.')
    if teacher is not None:
      teacher = prepare(where, 'teacher', teacher, mask, on)
      checks.check_same_shape(student, teacher, any_width=any_width)
    if takes_labels:
      options['labels'] = labels

    def run(student, teacher, *, mask):
      return _checked(where, function(student, teacher, mask=mask, **options))

    if in_blocks:
      return attention.compare(run, student, teacher, mask, by_head=by_head)
    return run(student, teacher, mask=mask)

  return guarded


def _checked(where: str, result: base.LossSum) -> base.LossSum:
  if not isinstance(result, base.LossSum):
    raise TypeError(f'{where}: a loss must return a haikd.LossSum; got '
                    f'{type(result).__name__}. End it with '
                    '`return haikd.masked_mean(values, mask)`.')
  return base.LossSum(*(jnp.asarray(x, jnp.float32) for x in result))


def _prepare_blocks(where: str, name: str, value, mask: jax.Array,
                    on: str) -> attention.MeanMaps:
  """Returns maps that stay uncomputed, clean as those of `_prepare` are."""
  if isinstance(value, base.QueryKey):
    _check_query_key(where, name, value, mask)
    value = masking.clean_query_key(value, mask)
    value = attention.MeanMaps((value,), value.shape[1])
  _check_maps(where, name, value.shape, mask)
  return value


def _prepare(where: str, name: str, value, mask: jax.Array, on: str):
  if isinstance(value, base.LinearLogits):
    checks.check_leading(f'{name}.hidden', value.hidden, mask)
  if isinstance(value, base.QueryKey):
    _check_query_key(where, name, value, mask)
  if isinstance(value, attention.MeanMaps):
    value = value.materialise()
  value = jnp.asarray(masking.materialise(value, mask))
  if not checks.is_real(value):
    raise TypeError(f'{where}: {name} must be floating point; got '
                    f'{name}.dtype={value.dtype}.')
  value = value.astype(jnp.float32)
  if on == 'attention':
    return _clean_maps(where, name, value, mask)
  checks.check_leading(name, value, mask)
  return masking.clean(value, mask)


def _clean_maps(where: str, name: str, maps: jax.Array,
                mask: jax.Array) -> jax.Array:
  """Zeros the padded queries and keys of `[B, H, N, N]`; mask [B] or [B, N]."""
  _check_maps(where, name, maps.shape, mask)
  if mask.ndim == 1:
    return masking.clean(maps, mask)
  keep = mask[:, None, :, None] & mask[:, None, None, :]
  return jnp.where(keep, maps, 0.0)


def _check_maps(where: str, name: str, shape: tuple[int, ...],
                mask: jax.Array) -> None:
  batch, _, queries, keys = shape if len(shape) == 4 else (None,) * 4
  if mask.shape not in ((batch,), (batch, queries)) or queries != keys:
    raise ValueError(f'{where}: {name} must be [B, H, N, N] and mask [B] or '
                     f'[B, N]; got {name}.shape={shape}, '
                     f'mask.shape={mask.shape}.')


def _check_query_key(where: str, name: str, value: base.QueryKey,
                     mask: jax.Array) -> None:
  checks.check_leading(f'{name}.query', value.query, mask)
  checks.check_leading(f'{name}.key', value.key, mask)
