"""The contract of a loss: what the step relies on, rule by rule."""

from collections.abc import Callable, Iterator
from typing import Any

from haikd.core import checks
from haikd.core import registry
from haikd.testing import cases
from haikd.testing import laziness
from haikd.testing import rules

# By name, in the order in which they are tried. A rule yields what it finds
# wrong: `<what> must <rule>; got <value>. <remedy>.`
RULES: dict[str, Callable[[cases.Case], Iterator[str]]] = dict(
    example=rules.example,
    runs=rules.runs,
    result=rules.result,
    pure=rules.pure,
    jit=rules.jit,
    empty=rules.empty,
    finite=rules.finite,
    padding=rules.padding,
    rows=rules.rows,
    columns=rules.columns,
    gradient=rules.gradient,
    count=rules.count,
    order=rules.order,
    shards=rules.shards,
    additive=laziness.additive,
    lazy=laziness.lazy,
)
# Without these no other rule can be tried.
_FIRST = ('example', 'runs', 'result')


def check_loss(name: str, **options: Any) -> None:
  """Checks that a registered loss keeps its contract.

  Call it in a test of your own, after the module that registers the loss was
  imported. It makes inputs from the `example` of the registration. What stands
  behind the mask, other dtypes, and shapes that do not fit are the guard's
  business, not the loss's (see `haikd.register_loss`). What it tries:

    example   it has one, with the labels if the loss needs them.
    runs      the loss takes these, eager and under `jit`.
    result    it returns a LossSum of a float32 total and an exact count.
    pure      it gives the same twice, leaks no tracer and has no side effect.
    jit       compiled and eager results agree.
    empty     where nothing counts, total, count and gradient are 0.
    finite    gradients are finite, also for equal networks, and before what the
              guard takes away behind the mask.
    padding   labels that stand in padding, NaN included, change no bit.
    rows      an example without a real position changes nothing.
    columns   positions at the end that are padding for all change nothing.
    gradient  it reaches the student.
    count     it depends on mask and labels alone, and is exact beyond 256.
    order     the order of the examples does not matter.
    shards    sums of two parts of a batch add up, unless it is `relational`.
    additive  what `additive=True` promises: a sum over positions or rows.
    lazy      LinearLogits or QueryKey give what arrays do.

  Args:
    name: of the loss.
    **options: of the loss, for those without a default.

  Raises:
    AssertionError: it breaks rules; a line for each.
    ConfigError: no loss has that name.
  """
  found = violations(name, **options)
  if found:
    raise AssertionError('\n'.join(found))


def violations(name: str, **options: Any) -> list[str]:
  """Returns what `check_loss` raises as lines: `<loss>, rule <rule>: <what>`.

  Args:
    name: as for `check_loss`.
    **options: as for `check_loss`.

  Raises:
    ConfigError: no loss has that name.
  """
  case = cases.Case(name, registry.losses[name], options)
  found = []
  for title, rule in RULES.items():
    try:
      problem = next(rule(case), None)  # The first of a kind says enough.
    except Exception as err:  # The loss is code of its author's.
      problem = ('the loss must take what the rule tries; got '
                 f'{checks.describe(err)}.')
    if problem:
      found.append(f'{name}, rule {title}: {problem}')
      if title in _FIRST:
        break
  return found
