"""Intermediates of any Haiku network, taken from outside.

A method interceptor sees every module call. What a tap wants is written into
the Haiku state under a reserved name and split off again when the network has
run. The state, unlike a Python list, is carried properly out of `hk.remat` and
`hk.layer_stack`; the latter stacks it to `[L, ...]`, which is unstacked here.
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
ATTENTION = 'attention'  # This kind takes query and key of stock modules.


class _Entry(NamedTuple):
  """One captured value, still in the state that it was carried out in."""

  kind: str
  order: int
  bundle: str
  value: Any


def capture(
    forward: Callable,
    taps: Mapping[str, Union[str, tuple[str, ...]]]) -> Callable:
  """Makes a Haiku function return intermediates beside its output.

  A tap is a glob over module names, see `globs.matches`: `block_*` finds every
  module so called at any depth, `block_*/attn` those called `attn` directly
  inside one. What is captured is the value that the module returns,
  which for `haikd.tap` is what was offered. The kind `attention` takes
  `base.QueryKey` from a stock `hk.MultiHeadAttention`.

  Nothing is captured while parameters are initialised, so that the network gets
  the parameters and state it would have had without.

  Args:
    forward: a function that uses Haiku modules, to be transformed later.
    taps: `{kind: glob}`, or a tuple of globs, for example
      `dict(features='block_*', attention='block_*/attn')`.

  Returns:
    A function like `forward` that returns `(output, taps)`, the latter a dict
    from kind to a tuple of values in call order (empty while initialising). It
    has to be transformed with `hk.transform_with_state`, or `hk.transform` if
    `forward` has no state.

  Raises:
    ConfigError: when the result is applied: a glob that matches no module, a
      module called more than once, a module inside `hk.scan` or another control
      flow that cannot carry new state, or an attention module whose query and
      key are not found.
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
      raise recorder.explain(err) from err
    state, values = recorder.split(state)
    updater.update(state)
    return output, values

  return captured


class _Recorder:
  """Writes what the taps want into the Haiku state, and takes it out again."""

  def __init__(self, taps):
    self._globs = {
        kind: [globs] if isinstance(globs, str) else list(globs)
        for kind, globs in taps.items()
    }
    self._order = itertools.count()
    self._matched = set()  # (kind, glob) of the globs that found something.
    self._written = {}  # (kind, order) -> (name of the module, ranks).
    self._seen = {}  # Names of all modules that were called.
    self._attention = []  # Stock attention modules being called right now.

  def intercept(self, next_call, args, kwargs, context):
    """Calls a method of a module and records the result if it is wanted."""
    if context.method_name != '__call__':
      return next_call(*args, **kwargs)
    module = context.module
    parts = globs_lib.parts(module.module_name)
    self._seen['/'.join(parts)] = True
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
    """Returns the network's own state, and `{kind: values in call order}`."""
    self._check_matched()
    own, entries = {}, []
    for bundle, variables in state.items():
      for name, value in variables.items():
        reserved, _, rest = name.partition(':')
        if reserved == _RESERVED:
          kind, _, order = rest.rpartition(':')
          entries.append(_Entry(kind, int(order), bundle, value))
        else:
          own.setdefault(bundle, {})[name] = value
    entries.sort(key=lambda entry: entry.order)
    values = {}
    for kind in self._globs:
      mine = [entry for entry in entries if entry.kind == kind]
      values[kind] = self._in_call_order(mine)
    return own, values

  def explain(self, err):
    """Returns a clear error for state that control flow could not carry."""
    text = checks.one_line(err)
    leaked = isinstance(err, jax.errors.UnexpectedTracerError)
    if self._written and (leaked or 'pytree structure' in text or
                          'out_axes' in text):
      names = sorted({name for name, _ in self._written.values()})
      return checks.ConfigError(
          'capture.capture: a captured module must not be called inside '
          'hk.scan, hk.vmap or another transformation that would have to carry '
          f'new state; got {names}. Use hk.layer_stack, or return the values '
          'from it and offer them with haikd.tap.')
    return err

  def _matches(self, parts):
    """Returns (kind, glob) of all globs that a module's name matches."""
    return [(kind, glob)
            for kind, globs in self._globs.items()
            for glob in globs if globs_lib.matches(glob, parts)]

  def _check_matched(self):
    for kind, globs in self._globs.items():
      for glob in globs:
        if (kind, glob) not in self._matched:
          raise checks.ConfigError(
              f'capture.capture: taps.{kind} must match a module that is '
              f'called; got {glob!r}. {checks.suggest(glob, self._seen)}')

  def _write(self, kind, module_name, value):
    if not jax.tree.leaves(value):
      raise checks.ConfigError(
          f'capture.capture: a captured module must return an array; got '
          f'{type(value).__name__} from {module_name!r} for taps.{kind}.')
    written = hk.get_current_state().get(module_name, {})
    if any(name.startswith(f'{_RESERVED}:{kind}:') for name in written):
      raise checks.ConfigError(
          f'capture.capture: a captured module must be called once; got a '
          f'second call of {module_name!r} for taps.{kind}. Offer each of its '
          'results with haikd.tap, or narrow the glob.')
    key = (kind, next(self._order))
    ranks = [leaf.ndim for leaf in jax.tree.leaves(value)]
    self._written[key] = (module_name, ranks)
    hk.set_state(f'{_RESERVED}:{kind}:{key[1]:06d}', value)

  def _in_call_order(self, entries):
    """Unstacks what layer_stack stacked; its layers ran one after another."""
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
    _, ranks = self._written[entry.kind, entry.order]
    leaves, structure = jax.tree.flatten(entry.value)
    # Nested stacks are flattened: the outer one runs its layers more slowly.
    leaves = [
        leaf.reshape((-1,) + leaf.shape[leaf.ndim - rank:])
        for leaf, rank in zip(leaves, ranks)
    ]
    return [
        structure.unflatten([leaf[i] for leaf in leaves])
        for i in range(leaves[0].shape[0])
    ]


def _query_key(module, children, args, kwargs) -> base.QueryKey:
  """Returns what a stock attention module computes its maps from."""
  name = module.module_name
  if set(children) != {'query', 'key'}:
    raise checks.ConfigError(
        'capture.capture: an attention module must have children named query '
        f'and key; got {sorted(children) or "neither"} in {name!r}. Offer '
        'haikd.QueryKey with haikd.tap in its place.')
  heads = {
      child: value.reshape(value.shape[:-1] + (module.num_heads, -1))
      for child, value in children.items()
  }
  if heads['query'].ndim != 4:
    raise checks.ConfigError(
        'capture.capture: attention must run on [B, N, D]; got '
        f"query.shape={children['query'].shape} in {name!r}.")
  mask = kwargs.get('mask', args[3] if len(args) > 3 else None)
  query = heads['query'] * heads['query'].shape[-1]**-0.5
  return base.QueryKey(query, heads['key'], None if mask is None else mask > 0)
