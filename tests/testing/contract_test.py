"""Each rule of the contract catches the loss that breaks it."""

import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import check
from haikd import testing
from haikd.core import registry
from haikd.testing import cases

EXAMPLE = dict(student=(2, 3, 5), mask=(2, 3))
LABELS = EXAMPLE | dict(labels=(2, 3, 5))
MAPS = dict(student=(2, 2, 3, 3), mask=(2, 3))
KEPT = []  # What an impure loss keeps.


@pytest.fixture(autouse=True)
def own_losses():
  with registry.losses.temporary():
    yield


def squares(student, teacher, mask):
  return haikd.masked_mean((student - teacher)**2, mask)


def needs_labels(student, teacher=None, *, mask, labels):
  return squares(student, labels, mask)


def needs_an_option(student, teacher, *, mask, delta):
  return squares(student, teacher + delta, mask)


def branches(student, teacher, *, mask):
  if jnp.sum(student) > 1e9:
    return squares(student, student, mask)
  return squares(student, teacher, mask)


def returns_a_mean(student, teacher, *, mask):
  return squares(student, teacher, mask).mean()


def total_in_bfloat16(student, teacher, *, mask):
  total, count = squares(student, teacher, mask)
  return haikd.LossSum(total.astype(jnp.bfloat16), count)


def count_in_bfloat16(student, teacher, *, mask):
  total, count = squares(student, teacher, mask)
  return haikd.LossSum(total, count.astype(jnp.bfloat16))


def total_for_each_example(student, teacher, *, mask):
  values = jnp.where(mask[..., None], (student - teacher)**2, 0)
  return haikd.LossSum(values.sum((1, 2)), mask.sum() * 5)


def draws(student, teacher, *, mask):
  return squares(student, teacher * np.random.rand(), mask)


def keeps_arrays(student, teacher, *, mask):
  KEPT.append(student)
  return squares(student, teacher, mask)


def prints(student, teacher, *, mask):
  jax.debug.print('{}', student[0, 0, 0])
  return squares(student, teacher, mask)


def looks_whether_it_is_traced(student, teacher, *, mask):
  scale = 1.0 if isinstance(mask, jax.core.Tracer) else 2.0
  return squares(scale * student, teacher, mask)


def counts_one(student, teacher, *, mask):
  return haikd.LossSum(squares(student, teacher, mask).total, jnp.float32(1))


def divides_by_nothing(student, teacher, *, mask):
  total, count = squares(student, teacher, mask)
  return haikd.LossSum(total / count * count, count)


def roots_of_zero(student, teacher, *, mask):
  distance = jnp.sqrt(jnp.sum((student - teacher)**2, -1))
  return haikd.masked_mean(distance, mask)


def unit_rows(student, teacher, *, mask):
  """Is finite, but its gradient is not where a row is 0."""
  norm = jnp.sqrt(jnp.sum(student**2, -1, keepdims=True))
  unit = jnp.where(norm > 0, student / jnp.where(norm > 0, norm, 1), 0)
  return squares(unit, teacher, mask)


def reads_labels_in_padding(student, teacher=None, *, mask, labels):
  total, count = squares(student, jnp.where(mask[..., None], labels, 0), mask)
  return haikd.LossSum(total + 0 * labels.sum(), count)


def reads_the_label_before(student, teacher=None, *, mask, labels):
  before = jnp.roll(labels, 1, axis=-1)[..., None]
  return squares(student, (before == jnp.arange(5)).astype(jnp.float32), mask)


def ignores_the_mask(student, teacher, *, mask):
  return squares(student, teacher + 1, jnp.ones_like(mask))


def divides_by_positions(student, teacher, *, mask):
  total, count = squares(student, teacher, mask)
  return haikd.LossSum(total / mask.shape[1], count)


def stops_the_gradient(student, teacher, *, mask):
  return squares(jax.lax.stop_gradient(student), teacher, mask)


def counts_large_errors(student, teacher, *, mask):
  errors = (student - teacher)**2
  kept = mask & (errors.max(-1) > 5)
  return haikd.masked_mean(errors, kept)


def counts_in_halves(student, teacher, *, mask):
  total, _ = squares(student, teacher, mask)
  count = jnp.sum(mask.astype(jnp.bfloat16), dtype=jnp.bfloat16) * 5
  return haikd.LossSum(total, count.astype(jnp.float32))


def weighs_by_place(student, teacher, *, mask):
  places = 1.0 + jnp.arange(len(student))[:, None, None]
  return squares(places * student, places * teacher, mask)


def divides_by_the_batch(student, teacher, *, mask):
  total, count = squares(student, teacher, mask)
  return haikd.LossSum(total / jnp.maximum(count, 1), count)


def centres(student, teacher, *, mask):
  """Relates the positions of an example to one another."""
  keep = mask[..., None]
  mean = jnp.where(keep, student, 0).sum(1, keepdims=True) / jnp.maximum(
      keep.sum(1, keepdims=True), 1)
  return squares(student - mean, teacher, mask)


def mean_over_keys(student, teacher, *, mask):
  errors = jnp.where(mask[:, None, :, None], (student - teacher)**2, 0)
  count = mask.sum() * student.shape[1]
  return haikd.LossSum(errors.mean(-1).sum(), count)


@pytest.mark.parametrize('rule, loss, more', (
    ('example', squares, dict(example=None)),
    ('example', needs_labels, {}),
    ('runs', needs_an_option, {}),
    ('runs', branches, {}),
    ('result', returns_a_mean, {}),
    ('result', total_in_bfloat16, {}),
    ('result', count_in_bfloat16, {}),
    ('result', total_for_each_example, {}),
    ('pure', draws, {}),
    # JAX looks through all objects for who holds a tracer.
    pytest.param('pure', keeps_arrays, {}, marks=pytest.mark.slow),
    ('pure', prints, {}),
    ('jit', looks_whether_it_is_traced, {}),
    ('empty', counts_one, {}),
    ('empty', divides_by_nothing, {}),
    ('finite', roots_of_zero, {}),
    ('finite', unit_rows, {}),
    ('padding', reads_labels_in_padding, dict(example=LABELS)),
    ('padding', reads_the_label_before,
     dict(example=EXAMPLE | dict(labels=(2, 3)))),
    ('rows', ignores_the_mask, {}),
    ('columns', divides_by_positions, {}),
    ('gradient', stops_the_gradient, {}),
    ('count', counts_large_errors, {}),
    ('count', counts_in_halves, {}),
    ('order', weighs_by_place, dict(relational=True)),
    ('shards', divides_by_the_batch, {}),
    ('additive', centres, dict(additive=True)),
    ('lazy', mean_over_keys, dict(on='attention', example=MAPS, additive=True)),
))
def test_a_rule_catches_the_loss_that_breaks_it(rule, loss, more):
  options = dict(on='features', example=EXAMPLE) | more
  if loss is squares:
    haikd.register_loss('tried', **options)(
        lambda student, teacher, *, mask: squares(student, teacher, mask))
  else:
    haikd.register_loss('tried', **options)(loss)
  case = cases.Case('tried', registry.losses['tried'], {})
  line = next(testing.RULES[rule](case))
  assert ' must ' in line and line.endswith('.') and '\n' not in line


def test_every_rule_has_a_loss_that_breaks_it():
  parameters = test_a_rule_catches_the_loss_that_breaks_it.pytestmark[0].args[1]
  values = (getattr(x, 'values', x) for x in parameters)  # Some are marked.
  assert {rule for rule, *_ in values} == set(testing.RULES)
  documented = re.findall(r'^ {2,4}(\w+) {2,}', testing.check_loss.__doc__,
                          re.MULTILINE)
  assert documented == list(testing.RULES)


def test_all_rules_that_are_broken_are_told():
  haikd.register_loss('tried', on='features', example=EXAMPLE)(counts_one)
  rules = [line.partition(':')[0] for line in testing.violations('tried')]
  assert rules == ['tried, rule empty', 'tried, rule count',
                   'tried, rule shards']


def test_a_loss_with_parameters_keeps_the_contract():

  @haikd.register_loss('tried', on='features', any_width=True,
                       example=EXAMPLE | dict(teacher=(2, 3, 4)))
  def learned_map(student, teacher, *, mask):
    return squares(hk.Linear(teacher.shape[-1])(student), teacher, mask)

  del learned_map
  testing.check_loss('tried')


def test_options_without_a_default_are_given():
  haikd.register_loss('tried', on='features', example=EXAMPLE)(needs_an_option)
  testing.check_loss('tried', delta=0.5)
  with pytest.raises(AssertionError, match='tried, rule runs: the loss must '
                     "take its example eager; got TypeError: .*'delta'"):
    testing.check_loss('tried')


PLUGIN = """
import haikd

EXAMPLE = dict(student=(2, 3, 5), mask=(2, 3))

@haikd.register_loss('mine/good', on='features', example=EXAMPLE)
def good(student, teacher, *, mask):
  return haikd.masked_mean((student - teacher)**2, mask)
"""
BROKEN = """
@haikd.register_loss('mine/bad', on='features')
def bad(student, teacher, *, mask):
  return haikd.masked_mean((student - teacher)**2, mask)
"""


def test_the_command_checks_the_losses_of_a_module(
    fresh, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for name, text in (('my_good', PLUGIN), ('my_bad', PLUGIN.replace(
      'good', 'fine') + BROKEN), ('my_empty', ''), ('my_error', '1 / 0')):
    (tmp_path / f'{name}.py').write_text(text)

  def call(*modules):
    code = check.main(['check', *modules])
    return code, *capsys.readouterr()

  code, out, err = call('my_good')
  assert (code, err) == (0, '')
  assert out == f'mine/good keeps all {len(testing.RULES)} rules\n'
  code, out, err = call('my_bad')
  assert (code, err) == (2, '')
  assert out.splitlines()[0] == (
      'mine/bad, rule example: register_loss(example=…) must give shapes; got '
      'None. Write example=dict(student=(2, 3, 5), mask=(2, 3)).')
  for module, match in (('my_empty', 'registers a loss; got my_empty'),
                        ('my_error', "'my_error' (ZeroDivisionError: "),
                        ('my_none', "'my_none' (ModuleNotFoundError: ")):
    code, out, err = call(module)
    assert (code, out) == (2, '') and match in err and err.count('\n') == 1
  assert call()[0] == 0
