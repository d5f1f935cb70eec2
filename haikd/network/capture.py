"""Captures intermediates of any Haiku network from outside.

A method interceptor sees every module call. It writes the outputs that match a
tap into the Haiku state under a reserved name, and they are split off when the
network has run. Unlike a Python list, the state is carried correctly out of
`hk.remat` and `hk.layer_stack`. `hk.layer_stack` stacks it to `[L, ...]`, which
is unstacked here.
"""

from collections.abc import Callable, Mapping
import itertools
from typing import Any, NamedTuple, Union

import haiku as hk
import jax

from haikd.core import base
from haikd.core import checks
from haikd.core import globs as globs_lib

_RESERVED = 'haikd_tap'
# The kind of tap that takes the query and key of a stock hk.MultiHeadAttention.
ATTENTION = 'attention'


class _Entry(NamedTuple):
  """A captured value as it lies in the Haiku state.

  Attributes:
    kind: the kind of its tap.
    order: the index of the call, over all kinds.
    bundle: the module name that the state has it under.
    value: the value, stacked by the layer_stacks around its module.
  """

  kind: str
  order: int
  bundle: str
  value: Any


def capture(
    forward: Callable,
    taps: Mapping[str, Union[str, tuple[str, ...]]]) -> Callable:
  """Makes a Haiku function also return intermediates.

  A tap is a glob over module names, see `globs.matches`: `block_*` matches
  modules of these names at any depth, `block_*/attn` a module `attn` directly
  inside one of them. The captured value is the output of the module; for
  `haikd.tap` it is the offered value. For the kind `attention` it is the
  `base.QueryKey` of a stock `hk.MultiHeadAttention`.

  Nothing is captured during initialisation, so that parameters and state are
  those of the network without capture.

  Args:
    forward: a function that uses Haiku modules, to be transformed later.
    taps: `{kind: glob}`, or a tuple of globs, for example
      `dict(features='block_*', attention='block_*/attn')`.

  Returns:
    A function like `forward` that returns `(output, taps)`, where `taps` is
    `{kind: tuple of values in call order}`, empty during initialisation.
    Transform it with `hk.transform_with_state`, or with `hk.transform` if
    `forward` has no state.

  Raises:
    ConfigError: when the result is applied: a glob that matches no module, a
      module called more than once, a module inside `hk.scan` or other control
      flow that cannot carry new state, or an attention module without children
      `query` and `key`.
  """

  def captured(*args, **kwargs):
    if hk.running_init():
      return forward(*args, **kwargs), {}
    recorder = _Recorder(taps)

    def run(*args, **kwargs):
      with hk.intercept_methods(recorder.intercept):
        return forward(*args, **kwargs)

    inner = hk.transform_with_state(run)
    get_variables, updater = hk.transparent_lift_with_state(
        inner.init, allow_reuse=True)
    key = hk.maybe_next_rng_key()
    params, state = get_variables(key, *args, **kwargs)
    try:
      output, state = inner.apply(params, state, key, *args, **kwargs)
    except (TypeError, ValueError, jax.errors.UnexpectedTracerError) as err:
      recorder.check_carried(err)
      raise
    state, values = recorder.split(state)
    updater.update(state)
    return output, values

  return captured


class _Recorder:
  """Writes the outputs that match taps into the Haiku state and reads them."""

  def __init__(self, taps):
    self._globs = {
        kind: [globs] if isinstance(globs, str) else list(globs)
        for kind, globs in taps.items()
    }
    self._order = itertools.count()
    self._matched = set()  # (kind, glob) of the globs that match a module.
    self._written = {}  # {(kind, order): (name of the module, ranks)}.
    self._called = {}  # Names of all modules that were called.
    # (name, {child: output}) of the stock attention modules being called.
    self._attention = []

  def intercept(self, next_call, args, kwargs, context):
    """Calls a method of a module and records the output if a tap matches."""
    if context.method_name != '__call__':
      return next_call(*args, **kwargs)
    module = context.module
    parts = globs_lib.parts(module.module_name)
    self._called['/'.join(parts)] = True
    matches = self._matches(parts)
    self._matched.update(matches)
    kinds = list(dict.fromkeys(kind for kind, _ in matches))
    if ATTENTION in kinds and isinstance(module, hk.MultiHeadAttention):
      self._attention.append((module.module_name, {}))
      output = next_call(*args, **kwargs)
      _, children = self._attention.pop()
      maps = _query_key(module, children, args, kwargs)
      self._write(ATTENTION, module.module_name, maps)
      kinds.remove(ATTENTION)
    else:
      output = next_call(*args, **kwargs)
    if self._attention:
      parent, children = self._attention[-1]
      owner, _, child = module.module_name.rpartition('/')
      if owner == parent and child in ('query', 'key'):
        children[child] = output
    for kind in kinds:
      self._write(kind, module.module_name, output)
    return output

  def split(self, state):
    """Returns the network's state, and `{kind: values in call order}`."""
    self._check_matched()
    network_state, entries = {}, []
    for bundle, variables in state.items():
      for name, value in variables.items():
        reserved, _, rest = name.partition(':')
        if reserved == _RESERVED:
          kind, _, order = rest.rpartition(':')
          entries.append(_Entry(kind, int(order), bundle, value))
        else:
          network_state.setdefault(bundle, {})[name] = value
    if len(entries) < len(self._written):
      raise self._inside_transform()
    entries.sort(key=lambda entry: entry.order)
    values = {
        kind: self._in_call_order(
            [entry for entry in entries if entry.kind == kind])
        for kind in self._globs
    }
    return network_state, values

  def check_carried(self, err):
    """Raises ConfigError if control flow could not carry the new state."""
    text = checks.one_line(err)
    leaked = isinstance(err, jax.errors.UnexpectedTracerError)
    if self._written and (leaked or 'pytree structure' in text or
                          'out_axes' in text):
      names = sorted({name for name, _ in self._written.values()})
      raise checks.ConfigError(
          'a captured module must not be called inside hk.scan, hk.vmap or '
          'another transformation that would have to carry new state; got '
          f'{names}. Use hk.layer_stack, or return the values from the '
          'transformation and offer them with haikd.tap.') from err
    if self._written and type(err).__name__ == 'NonEmptyStateError':
      raise self._inside_transform() from err

  def _inside_transform(self):
    """Returns the error of modules whose state another transform took."""
    names = sorted({name for name, _ in self._written.values()})
    return checks.ConfigError(
        'a captured module must not be called by a function that was '
        f'transformed before; got {names}. Call the function in place of '
        'hk.transform(function).apply, with its parameters from '
        'config.teacher.init, or choose other taps.')

  def _matches(self, parts):
    """Returns (kind, glob) of all globs that match a module's name."""
    return [(kind, glob)
            for kind, globs in self._globs.items()
            for glob in globs if globs_lib.matches(glob, parts)]

  def _check_matched(self):
    for kind, globs in self._globs.items():
      for glob in globs:
        if (kind, glob) not in self._matched:
          raise checks.ConfigError(
              f'taps.{kind} must match a module that is called; got '
              f'{glob!r}. {checks.suggest(glob, self._called)}')

  def _write(self, kind, module_name, value):
    if not jax.tree.leaves(value):
      raise checks.ConfigError(
          f'taps.{kind} must match modules that return an array; got '
          f'{type(value).__name__} from {module_name!r}. Narrow the glob.')
    written = hk.get_current_state().get(module_name, {})
    if any(name.startswith(f'{_RESERVED}:{kind}:') for name in written):
      raise checks.ConfigError(
          f'taps.{kind} must match modules that are called once; got a second '
          f'call of {module_name!r}. Offer each of its outputs with haikd.tap, '
          'or narrow the glob.')
    order = next(self._order)
    ranks = [leaf.ndim for leaf in jax.tree.leaves(value)]
    self._written[kind, order] = (module_name, ranks)
    hk.set_state(f'{_RESERVED}:{kind}:{order:06d}', value)

  def _in_call_order(self, entries):
    """Returns the values, layer_stacks unstacked: layer 0 first, then 1."""
    values = []
    groups = itertools.groupby(entries, key=self._stack_of)
    for stack, group in groups:
      group = list(group)
      if stack is None:
        values.extend(entry.value for entry in group)
      else:
        layers = [self._unstack(entry) for entry in group]
        values.extend(itertools.chain.from_iterable(zip(*layers)))
    return tuple(values)

  def _stack_of(self, entry):
    """Returns the name of the layer_stack that an entry was in, or None."""
    inner_name, ranks = self._written[entry.kind, entry.order]
    if [leaf.ndim for leaf in jax.tree.leaves(entry.value)] == ranks:
      return None
    return entry.bundle.removesuffix(inner_name)

  def _unstack(self, entry):
    """Returns the value of each layer."""
    _, ranks = self._written[entry.kind, entry.order]
    leaves, structure = jax.tree.flatten(entry.value)
    # Nested stacks are flattened: the inner one runs once a layer of the outer.
    leaves = [
        leaf.reshape((-1,) + leaf.shape[leaf.ndim - rank:])
        for leaf, rank in zip(leaves, ranks)
    ]
    return [
        structure.unflatten([leaf[i] for leaf in leaves])
        for i in range(leaves[0].shape[0])
    ]


def _query_key(module, children, args, kwargs) -> base.QueryKey:
  """Returns the query and key that a stock attention module's maps are of."""
  name = module.module_name
  if set(children) != {'query', 'key'}:
    raise checks.ConfigError(
        f'taps.{ATTENTION} must match attention modules with children named '
        f'query and key; got {sorted(children) or "neither"} in {name!r}. '
        'Offer haikd.QueryKey with haikd.tap instead, and match that.')
  heads = {
      child: value.reshape(value.shape[:-1] + (module.num_heads, -1))
      for child, value in children.items()
  }
  if heads['query'].ndim != 4:
    raise checks.ConfigError(
        f'taps.{ATTENTION} must match attention on [B, N, D]; got query.shape='
        f"{children['query'].shape} in {name!r}. Narrow the glob.")
  mask = kwargs.get('mask', args[3] if len(args) > 3 else None)
  query = heads['query'] * heads['query'].shape[-1]**-0.5
  return base.QueryKey(query, heads['key'], None if mask is None else mask > 0)
