"""The decorator that registers a loss, and the guard that it puts around it."""

from collections.abc import Callable, Mapping
import functools
import inspect
import types
from typing import Any, Optional, Union

import jax
import jax.numpy as jnp

from haikd import attention
from haikd.core import base
from haikd.core import checks
from haikd.core import entries
from haikd.core import masking
from haikd.core import recorded as recorded_lib
from haikd.core import registry
from haikd.core import weighting
from haikd.losses import chunks


def register_loss(name: Optional[str] = None,
                  *,
                  on: Union[str, tuple[str, ...]],
                  example: Optional[dict[str, tuple[int, ...]]] = None,
                  relational: bool = False,
                  any_width: bool = False,
                  additive: bool = False,
                  by_head: bool = False,
                  scores: bool = False,
                  recorded: Mapping[type, Callable] = types.MappingProxyType(
                      {}),
                  replace: bool = False) -> Callable[[Callable], Callable]:
  """Registers a function `(student, teacher, *, mask, **options) -> LossSum`.

  The registered function is guarded, so that a loss of three lines is as safe
  as one of thirty. Before it runs, lazy logits or maps are materialised,
  student and teacher are cast to float32, and everything behind the mask is
  replaced by zeros, also for the gradient. Afterwards its result is checked.
  Shapes and the mask's dtype are checked while tracing.

  Args:
    name: what configs call the loss; the function's name by default.
    on: what it takes: 'logits', 'features', 'attention', or any tap's name. A
      tuple of taps gives it a dict of arrays for each side, {tap: array}, of
      the same layers; they share the mask.
    example: `{argument: shape}` from which the contract test makes its inputs,
      for example `dict(student=(2, 3, 5), mask=(2, 3))`; a missing `teacher`
      has the student's shape.
    relational: whether it relates examples to one another. The step then
      gathers the batch over all devices before it calls the loss.
    any_width: whether the last axes of student and teacher may differ, as when
      each is first compared with itself. Such a loss gets its inputs unaligned
      unless a config says otherwise.
    additive: whether it is a sum over positions, or over the rows of maps, each
      of which depends on its own row only, and its count depends on `mask` and
      labels only. Such a loss gets lazy logits or maps piece by piece: neither
      they nor their gradient are materialised, but for maps of up to 8 MiB a
      layer. A piece of maps lacks keys that none of its queries may attend to,
      so a loss that divides by the number of keys is not additive.
    by_head: whether an additive loss on maps is a sum over heads too. A piece
      may then hold only some of the heads, which is faster.
    scores: whether it compares scores of texts with a teacher's, which are the
      labels where the data has scores, and the teacher's own elsewhere.
    recorded: for each type of `core.recorded` that it can take in place of a
      teacher's logits, the function that does. It is called as the loss is, and
      has the same options.
    replace: whether it may replace a loss of the same name.

  Returns:
    A decorator that registers and returns the guarded function. It raises
    ConfigError if the name is taken, or the function lacks a loss's parameters.
  """

  def decorate(function: Callable) -> Callable:
    loss_name = name or function.__name__
    _check_parameters(function)
    if additive and relational:
      raise checks.ConfigError(
          'a loss must not be both additive and relational; got '
          f'{loss_name!r} of {function.__module__}. A loss that relates '
          'examples to one another is not a sum over positions.')
    several = not isinstance(on, str)
    if several and (additive or 'logits' in on or len(set(on)) < 2):
      raise checks.ConfigError(
          'on must be two taps or more where it is a tuple, without logits and '
          f'additive=True; got on={on}, additive={additive} for {loss_name!r} '
          f'of {function.__module__}. Name one tap, in quotes.')
    if by_head and not (additive and on == 'attention'):
      raise checks.ConfigError(
          "by_head=True must come with additive=True and on='attention'; got "
          f'additive={additive}, on={on!r} for {loss_name!r} of '
          f'{function.__module__}. Only losses on attention are evaluated head '
          'by head.')
    takes = inspect.signature(function).parameters
    if scores and not all(name in takes and takes[name].default is None
                          for name in ('teacher', 'labels')):
      raise checks.ConfigError(
          'scores=True must come with teacher=None and labels=None; got '
          f'{inspect.signature(function)} for {loss_name!r} of '
          f'{function.__module__}. The loss gets one of the two.')
    guarded = _guard(function, on, any_width=any_width, additive=additive,
                     by_head=by_head, recorded=recorded)
    entry = entries.LossEntry(guarded, on, example, relational, any_width,
                              additive, scores, tuple(recorded),
                              function.__module__)
    registry.losses.add(loss_name, entry, replace=replace)
    return guarded

  return decorate


def _check_parameters(function: Callable) -> None:
  """Raises ConfigError unless a function has the parameters of a loss."""
  signature = inspect.signature(function)
  parameters = tuple(signature.parameters.values())
  positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
  mask = signature.parameters.get('mask')
  if (tuple(p.name for p in parameters[:2]) != ('student', 'teacher') or
      any(p.kind is not positional for p in parameters[:2]) or
      mask is None or
      mask.kind not in (positional, inspect.Parameter.KEYWORD_ONLY)):
    raise checks.ConfigError(
        'a loss must take student, teacher, and the keyword mask; got '
        f'{function.__name__}{signature} of {function.__module__}. Write `def '
        f'{function.__name__}(student, teacher, *, mask, …):`.')


def get_loss(name: str) -> Callable:
  """Returns the registered loss of that name.

  Args:
    name: a name from `loss_names()`.

  Returns:
    The guarded function.

  Raises:
    ConfigError: no loss has that name; the message names the closest.
  """
  return registry.losses[name].function


def loss_names() -> tuple[str, ...]:
  """Returns the names of all registered losses in alphabetical order."""
  return registry.losses.names()


def _guard(function: Callable, on: Union[str, tuple[str, ...]], *,
           any_width: bool, additive: bool, by_head: bool,
           recorded: Mapping[type, Callable]) -> Callable:
  parameters = inspect.signature(function).parameters
  takes_labels = 'labels' in parameters
  needs_teacher = parameters['teacher'].default is inspect.Parameter.empty
  # A block holds rows of maps, but labels belong to positions or examples.
  takes_blocks = on == 'attention' and additive and not takes_labels

  def checked(student, teacher, **options):
    return _check_result(function(student, teacher, **options))

  def in_chunks(student, teacher, mask, labels, options):
    loss = functools.partial(guarded, **options)
    total, (loss_sum,) = chunks.weighted(
        (loss,), jnp.ones(1), student, teacher, mask=mask, labels=labels)
    return base.LossSum(total, loss_sum.count)

  @functools.wraps(function)
  def guarded(student, teacher=None, *, mask, labels=None, block_weight=None,
              **options):
    checks.check_mask(mask)
    if additive and isinstance(student, base.LinearLogits):
      return in_chunks(student, teacher, mask, labels, options)
    in_blocks = takes_blocks and all(
        isinstance(x, (base.QueryKey, attention.MeanMaps))
        for x in (student, teacher) if x is not None)
    prepare = _prepare_blocks if in_blocks else _prepare
    student = prepare('student', student, mask, on)
    if teacher is None and needs_teacher:
      raise TypeError(
          f'teacher must be given, since {function.__name__} has no default '
          'for it; got None. If the loss needs no teacher, declare '
          '`teacher=None`.')
    if takes_labels:
      options['labels'] = labels
    if isinstance(teacher, recorded_lib.TARGETS):
      if type(teacher) not in recorded:
        raise TypeError(
            f'{function.__name__} does not take recorded '
            f'{type(teacher).__name__}. Give the logits of the teacher.')
      # Behind the mask, as everywhere, are zeros.
      teacher = jax.tree.map(lambda x: masking.clean(x, mask), teacher)
      return _check_result(
          recorded[type(teacher)](student, teacher, mask=mask, **options))
    if teacher is not None:
      teacher = prepare('teacher', teacher, mask, on)
      sides = student, teacher
      for pair in ((sides,) if isinstance(on, str) else
                   zip(*(side.values() for side in sides))):
        checks.check_same_shape(*pair, any_width=any_width)

    run = functools.partial(checked, **options)
    if in_blocks:
      return attention.compare(checked, student, teacher, mask, options=options,
                               weight=block_weight, by_head=by_head)
    if block_weight is not None:  # One of the sides was no lazy map.
      return weighting.add_up(
          lambda student, teacher, mask: run(student, teacher, mask=mask),
          block_weight, student, teacher, mask)
    return run(student, teacher, mask=mask)

  return guarded


def _check_result(result: base.LossSum) -> base.LossSum:
  """Returns a loss's result in float32; raises TypeError if it is no sum."""
  if not isinstance(result, base.LossSum):
    raise TypeError('a loss must return a haikd.LossSum; got '
                    f'{type(result).__name__}. End it with `return '
                    'haikd.masked_mean(values, mask)`.')
  return base.LossSum(*(jnp.asarray(x, jnp.float32) for x in result))


def _prepare_blocks(name: str, value: Union[base.QueryKey, attention.MeanMaps],
                    mask: jax.Array, on: Any) -> attention.MeanMaps:
  """Checks and cleans maps, and leaves them lazy."""
  del on
  if isinstance(value, base.QueryKey):
    _check_query_key(name, value, mask)
    value = masking.clean_query_key(value, mask)
    value = attention.MeanMaps((value,), value.shape[1])
  _check_maps(name, value.shape, mask)
  return value


def _prepare(name: str, value: Any, mask: jax.Array,
             on: Union[str, tuple[str, ...]]) -> Any:
  """Checks and materialises an argument of a loss; float32, clean."""
  if not isinstance(on, str):
    return {kind: _prepare(f'{name}[{kind!r}]', value[kind], mask, kind)
            for kind in on}
  if isinstance(value, base.LinearLogits):
    checks.check_leading(f'{name}.hidden', value.hidden, mask)
  if isinstance(value, base.QueryKey):
    _check_query_key(name, value, mask)
  if isinstance(value, attention.MeanMaps):
    value = value.materialise()
  value = jnp.asarray(masking.materialise(value, mask))
  if not checks.is_real(value):
    raise TypeError(
        f'{name} must be floating point; got {name}.dtype={value.dtype}.')
  value = value.astype(jnp.float32)
  if on == 'attention':
    return _clean_maps(name, value, mask)
  checks.check_leading(name, value, mask)
  return masking.clean(value, mask)


def _clean_maps(name: str, maps: jax.Array, mask: jax.Array) -> jax.Array:
  """Zeros the padded queries and keys of `[B, H, N, N]`; mask [B] or [B, N]."""
  _check_maps(name, maps.shape, mask)
  if mask.ndim == 1:
    return masking.clean(maps, mask)
  keep = mask[:, None, :, None] & mask[:, None, None, :]
  return jnp.where(keep, maps, 0.0)


def _check_maps(name: str, shape: tuple[int, ...], mask: jax.Array) -> None:
  batch, _, queries, keys = shape if len(shape) == 4 else (None,) * 4
  if mask.shape not in ((batch,), (batch, queries)) or queries != keys:
    raise ValueError(f'{name} must be [B, H, N, N] and mask [B] or [B, N]; got '
                     f'{name}.shape={shape}, mask.shape={mask.shape}.')


def _check_query_key(name: str, value: base.QueryKey, mask: jax.Array) -> None:
  checks.check_leading(f'{name}.query', value.query, mask)
  checks.check_leading(f'{name}.key', value.key, mask)
