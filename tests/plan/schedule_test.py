"""Reading compiled modules: texts written by hand, and one that XLA made."""

import textwrap

import jax
from jax import lax
import jax.numpy as jnp
import pytest

from haikd.engine import counting
from haikd.plan import hlo
from haikd.plan import schedule

P = jax.sharding.PartitionSpec
MESH = dict(replica=2, fsdp=4, tensor=1)
ROWS = '{{0,1,2,3},{4,5,6,7}}'  # Along fsdp.
SHARD, WHOLE = 2 * 5 * 4, 8 * 5 * 4  # Bytes of f32[2,5] and f32[8,5].

# What the snippets call: a product, and the sum of a reduction.
BELOW = """
    %add (a: f32[], b: f32[]) -> f32[] {
      %a = f32[] parameter(0)
      %b = f32[] parameter(1)
      ROOT %sum = f32[] add(%a, %b)
    }

    %product (p: f32[8,5], q: f32[5,8]) -> f32[8,8] {
      %p = f32[8,5]{1,0} parameter(0)
      %q = f32[5,8]{1,0} parameter(1)
      ROOT %dot = f32[8,8]{1,0} dot(%p, %q), lhs_contracting_dims={1}
    }
"""


def entry(*lines, above=''):
  """Returns a module whose entry has some lines after its parameters."""
  head = ('HloModule jit_step, is_scheduled=true\n' +
          textwrap.dedent(BELOW) + textwrap.dedent(above))
  body = ('%x = f32[2,5]{1,0:T(8,128)(2,1)} parameter(0)',
          '%p = f32[8,5]{1,0} parameter(1)', '%q = f32[5,8]{1,0} parameter(2)',
          *lines)
  return head + '\nENTRY %main (x: f32[2,5], p: f32[8,5]) -> f32[8,5] {\n' + (
      ''.join(f'  {line}\n' for line in body)) + '}\n'


PRODUCT = ('%m = f32[8,8]{1,0} fusion(%p, %q), kind=kOutput, calls=%product')
GATHER = (f'replica_groups={ROWS}, dimensions={{0}}, '
          'use_global_device_ids=true')
START = ('%g = (f32[2,5]{1,0}, f32[8,5]{1,0}) all-gather-start(%x), '
         f'channel_id=1, {GATHER}')
DONE = '%d = f32[8,5]{1,0} all-gather-done(%g)'
CALL = '%k = f32[8,8]{1,0} custom-call(%p, %q), custom_call_target='


def read(text):
  return schedule.read(text, MESH)


def test_gather_that_waits_is_not_hidden():
  found = read(entry(f'%g = f32[8,5]{{1,0}} all-gather(%x), {GATHER}', PRODUCT))
  assert found.collectives == (
      ('all-gather', ('fsdp',), 1, WHOLE, WHOLE * 3 / 4, False),)
  assert found.hidden() == 0


@pytest.mark.parametrize('lines, hidden', [
    ((START, PRODUCT, DONE), True),
    ((START, DONE, PRODUCT), False),
    ((PRODUCT, START, DONE), False),
    ((START, '%c = f32[8,5]{1,0} copy(%p)', DONE), False),
    ((START, CALL + '"tpu_custom_call"', DONE), True),
    ((START, CALL + '"Sharding"', DONE), False),
    ((START, '%l = (s32[], f32[8,5]{1,0}) while(%t), condition=%c, body=%b',
      DONE), True),
])
def test_pair_hides_behind_what_is_scheduled_between(lines, hidden):
  [found] = read(entry(*lines)).collectives
  assert found == ('all-gather', ('fsdp',), 1, WHOLE, WHOLE * 3 / 4, hidden)


@pytest.mark.parametrize('between, hidden', [((PRODUCT,), True), ((), False)])
def test_wrapped_pair_and_its_update(between, hidden):
  above = f"""
    %wrapped (w: f32[2,5]) -> f32[8,5] {{
      %w = f32[2,5]{{1,0}} parameter(0)
      ROOT %inner = f32[8,5]{{1,0}} all-gather(%w), {GATHER}
    }}
  """
  text = entry(
      '%s = ((f32[2,5]{1,0}), f32[8,5]{1,0}, u32[]) async-start(%x), '
      'calls=%wrapped',
      '%u = ((f32[2,5]{1,0}), f32[8,5]{1,0}, u32[]) async-update(%s)',
      *between,
      '%d = f32[8,5]{1,0} async-done(%u)', '%e = f32[8,8] dot(%p, %q)',
      above=above)
  [found] = read(text).collectives
  assert found == ('all-gather', ('fsdp',), 1, WHOLE, WHOLE * 3 / 4, hidden)


def chain(name, work, mark=''):
  dot = ('%dot = f32[8,8]{1,0} convolution(%b, %b), dim_labels=bf_io->bf'
         if work else '%dot = f32[8,5]{1,0} copy(%b)')
  return f"""
    %{name} (a: f32[2,5], b: f32[8,5]) -> f32[8,5] {{
      %a = f32[2,5]{{1,0}} parameter(0)
      %b = f32[8,5]{{1,0}} parameter(1)
      {dot}
      %ag = f32[8,5]{{1,0}} all-gather(%a), channel_id=7, {GATHER}, \
backend_config={{"async_collective_fusion_config":{{"flag_start":"-1"}}}}
      ROOT %c = f32[8,5]{{1,0}} custom-call(%ag), custom_call_target="{mark}"
    }}
  """


def bodies(work):
  return (chain('start_body', False, 'AsyncCollectiveStart') +
          chain('step_body', work) +
          chain('done_body', False, 'AsyncCollectiveDone'))


def link(name, *operands):
  body = name.rstrip('2')
  return (f'%{name} = f32[8,5]{{1,0}} fusion({", ".join(operands)}), '
          f'kind=kCustom, calls=%{body}_body')


@pytest.mark.parametrize('work', [True, False])
def test_chain_of_fusions_is_one_collective(work):
  text = entry(
      link('start', '%x', '%p'),
      '%part = f32[8,5]{1,0} get-tuple-element(%start), index=0',
      link('step', '%part', '%p'), link('done', '%step', '%p'),
      above=bodies(work))
  [found] = read(text).collectives
  assert found == ('all-gather', ('fsdp',), 1, WHOLE, WHOLE * 3 / 4, work)


@pytest.mark.parametrize('taken', ['%x', '%done'])
def test_chains_through_one_channel_are_several_collectives(taken):
  # The product belongs to the second alone, even if it goes on with the first.
  text = entry(
      link('start', '%x', '%p'), link('done', '%start', '%p'),
      link('start2', taken, '%p'), link('step2', '%start2', '%p'),
      link('done2', '%step2', '%p'), above=bodies(True))
  assert [x.hidden for x in read(text).collectives] == [False, True]


def test_sum_of_parts_beside_zeros_is_a_gather():
  text = entry(
      '%dynamic-update-slice.1 = f32[8,5]{1,0} dynamic-update-slice(%z, %x, '
      '%i, %i)',
      f'%r = f32[8,5]{{1,0}} all-reduce(%dynamic-update-slice.1), '
      f'replica_groups={ROWS}, to_apply=%add')
  # On the wire it is the all-reduce that it is: twice a gather.
  assert read(text).traffic() == (('all-gather', ('fsdp',), 1, WHOLE,
                                   WHOLE * 3 / 2),)


def test_reduction_fused_with_a_slice_is_a_scatter():
  above = f"""
    %all-reduce-scatter.1 (a: f32[8,5]) -> f32[2,5] {{
      %a = f32[8,5]{{1,0}} parameter(0)
      %r = f32[8,5]{{1,0}} all-reduce(%a), replica_groups={ROWS}, to_apply=%add
      ROOT %s = f32[2,5]{{1,0}} dynamic-slice(%r), dynamic_slice_sizes={{2,5}}
    }}
  """
  text = entry('%s = f32[2,5]{1,0} fusion(%p), kind=kCustom, '
               'calls=%all-reduce-scatter.1', above=above)
  assert read(text).traffic() == (
      ('reduce-scatter', ('fsdp',), 1, WHOLE, WHOLE * 3 / 4),)


def test_reduction_of_several_arrays_takes_them_all():
  text = entry('%r = (f32[8,5]{1,0}, /*index=1*/f32[2,5]{1,0}) '
               'all-reduce(%p, %x), replica_groups={}, to_apply=%add')
  [found] = read(text).collectives
  assert found[:4] == ('all-reduce', ('replica', 'fsdp'), 1, WHOLE + SHARD)
  assert found.wire == (WHOLE + SHARD) * 2 * 7 / 8


@pytest.mark.parametrize('pairs, axes', [
    ('{{0,1},{1,2},{2,3},{3,0}}', ('fsdp',)),
    ('{{0,4},{4,0}}', ('replica',)),
    ('{{0,1},{1,2},{2,3},{3,4}}', ('replica', 'fsdp')),
])
def test_permutation_sends_what_it_holds(pairs, axes):
  text = entry(
      '%c = (f32[2,5]{1,0}, f32[2,5]{1,0}, u32[], u32[]) '
      'collective-permute-start(%x), channel_id=3, '
      f'source_target_pairs={pairs}',
      PRODUCT,
      '%d = f32[2,5]{1,0} collective-permute-done(%c)')
  [found] = read(text).collectives
  assert found == (
      'collective-permute', axes, 1, SHARD, SHARD, True)


@pytest.mark.parametrize('lines, hidden', [((PRODUCT,), True), ((), False)])
def test_what_goes_through_hosts_is_read(lines, hidden):
  attributes = ('channel_id=4, is_host_transfer=true, frontend_attributes={'
                '_xla_host_transfer_rendezvous="psum_0",'
                '_xla_megascale_transfer_type="ALL_REDUCE"}')
  text = entry(
      '%t = token[] after-all()',
      f'%s = (f32[2,5]{{1,0}}, u32[], token[]) send(%x, %t), {attributes}',
      f'%r = (f32[2,5]{{1,0}}, u32[], token[]) recv(%t), {attributes}',
      *lines,
      '%e = (f32[2,5]{1,0}, token[]) recv-done(%r), channel_id=4',
      PRODUCT.replace('%m', '%n'))
  found = schedule.read(text, MESH, between=('replica',))
  # Two slices: each sends half, and then the sum of the other half.
  assert found.collectives == (
      ('all-reduce', ('replica',), 1, SHARD, SHARD, hidden),)


@pytest.mark.parametrize('name, kind, payload', [
    # Of two slices, each has half of what is gathered.
    ('ALL_GATHER', 'all-gather', 2 * SHARD),
    ('ONE_TO_ONE', 'collective-permute', SHARD),
])
def test_kinds_that_go_through_hosts(name, kind, payload):
  text = entry(
      '%s = (f32[2,5]{1,0}, u32[], token[]) send(%x, %t), channel_id=4, '
      'frontend_attributes={_xla_host_transfer_rendezvous="a",'
      f'_xla_megascale_transfer_type="{name}"}}')
  found = schedule.read(text, MESH, between=('replica',))
  assert found.collectives == (
      (kind, ('replica',), 1, payload, SHARD, False),)


LOOP = """
    %body (t: (s32[], f32[2,5])) -> (s32[], f32[2,5]) {{
      %t = (s32[], f32[2,5]{{1,0}}) parameter(0)
      %i = s32[] get-tuple-element(%t), index=0
      %v = f32[2,5]{{1,0}} get-tuple-element(%t), index=1
      %one = s32[] constant(1)
      %next = s32[] add(%i, %one)
      %g = f32[8,5]{{1,0}} all-gather(%v), replica_groups=[2,4]<=[8]
      ROOT %new = (s32[], f32[2,5]{{1,0}}) tuple(%next, %v)
    }}

    %more (t: (s32[], f32[2,5])) -> pred[] {{
      %t = (s32[], f32[2,5]{{1,0}}) parameter(0)
      %i = s32[] get-tuple-element(%t), index=0
      %limit = s32[] {limit}
      ROOT %lt = pred[] compare(%i, %limit), direction={direction}
    }}
"""


@pytest.mark.parametrize('limit, direction, attribute, times, open_loops', [
    ('constant(14)', 'LT', '', 11, 0),
    ('constant(14)', 'GT', '', 1, 1),
    ('add(%i, %i)', 'LT', '', 1, 1),
    ('add(%i, %i)', 'LT', ', backend_config={"known_trip_count":{"n":"9"}}', 9,
     0),
])
def test_loop_runs_its_length(limit, direction, attribute, times, open_loops):
  text = entry(
      '%three = s32[] constant(3)',
      '%begin = (s32[], f32[2,5]{1,0}) tuple(%three, %x)',
      '%loop = (s32[], f32[2,5]{1,0}) while(%begin), condition=%more, '
      f'body=%body{attribute}',
      above=LOOP.format(limit=limit, direction=direction))
  found = read(text)
  assert found.open_loops == open_loops
  assert found.traffic() == (('all-gather', ('fsdp',), times, times * WHOLE,
                              times * WHOLE * 3 / 4),)


def test_chain_that_goes_on_in_a_loop_of_unknown_length_counts_before_it():
  loop = LOOP.format(limit='add(%i, %i)', direction='LT').replace(
      'all-gather(%v), replica_groups=[2,4]<=[8]',
      'fusion(%v, %v), kind=kCustom, calls=%step_body')
  text = entry(
      link('start', '%x', '%p'), '%three = s32[] constant(3)',
      '%begin = (s32[], f32[2,5]{1,0}) tuple(%three, %x)',
      '%loop = (s32[], f32[2,5]{1,0}) while(%begin), condition=%more, '
      'body=%body', link('done', '%start', '%p'), above=bodies(False) + loop)
  found = read(text)
  assert found.open_loops == 0 and len(found.collectives) == 1


@pytest.mark.parametrize('last, times', [(14, 11), (3, 0), (2, 0)])
def test_limit_may_be_carried_through_a_loop(last, times):
  above = LOOP.format(limit='get-tuple-element(%t), index=2', direction='LT')
  text = entry(
      '%three = s32[] constant(3)',
      f'%last = s32[] constant({last})', '%limit = s32[] copy(%last)',
      '%begin = (s32[], f32[2,5]{1,0}, s32[]) tuple(%three, %x, %limit)',
      '%loop = (s32[], f32[2,5]{1,0}, s32[]) while(%begin), condition=%more, '
      'body=%body', above=above)
  found = read(text)
  assert found.open_loops == 0
  assert sum(x.times for x in found.collectives) == times


def test_loop_in_a_loop_runs_as_often_as_both():
  outer = """
    %outer (t: (s32[], f32[2,5])) -> (s32[], f32[2,5]) {
      %t = (s32[], f32[2,5]{1,0}) parameter(0)
      %start = s32[] constant(3)
      %count = s32[] copy(%start)
      %v = f32[2,5]{1,0} get-tuple-element(%t), index=1
      %u = (s32[], f32[2,5]{1,0}) tuple(%count, %v)
      ROOT %w = (s32[], f32[2,5]{1,0}) while(%u), condition=%more, body=%body
    }
  """
  inner = LOOP.format(limit='constant(14)', direction='LT')
  text = entry('%loop = (s32[], f32[2,5]{1,0}) while(%t), condition=%known, '
               'body=%outer, backend_config={"known_trip_count":{"n":"5"}}',
               above=inner + outer)
  assert read(text).traffic() == (('all-gather', ('fsdp',), 55, 55 * WHOLE,
                                   55 * WHOLE * 3 / 4),)


@pytest.mark.parametrize('attributes, groups', [
    ('replica_groups={{0,2},{1,3}}, x=1', [(0, 2), (1, 3)]),
    ('replica_groups=[2,2]<=[4]', [(0, 1), (2, 3)]),
    ('replica_groups=[2,2]<=[2,2]T(1,0)', [(0, 2), (1, 3)]),
    ('replica_groups=[1,4]<=[4]', [(0, 1, 2, 3)]),
    ('replica_groups={}, to_apply=%add', [(0, 1, 2, 3)]),
    ('source_target_pairs={{0,1},{1,0}}', [(0, 1), (1, 0)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x=1", [(0, 1), (2, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [(0, 2), (1, 3)]),
    ("replica_groups=mesh['a'=4] {'a'}", [(0, 1, 2, 3)]),
    ('replica_groups=@somewhere', None),
])
def test_groups_are_read(attributes, groups):
  assert hlo.device_groups(attributes, 4) == groups


@pytest.mark.parametrize('shape, size', [
    ('f32[2,5]{1,0:T(8,128)}', 40), ('bf16[3]{0:T(256)(128)(2,1)S(1)}', 6),
    ('pred[]', 1), ('(s32[], /*index=1*/f32[4]{0})', 20), ('s4[8]{0}', 4),
    ('f8e4m3fn[3]', 3), ('(f32[2]{0}, token[])', 8), ('c64[2]', 16)])
def test_size_of_a_type(shape, size):
  assert hlo.size(shape) == size


def test_fraction_hidden_by_axes():
  one = ('all-gather', ('fsdp',), 2.0, 9.0, 3.0, True)
  two = ('all-reduce', ('replica',), 1.0, 9.0, 2.0, False)
  found = schedule.Schedule(
      (schedule.Collective(*one), schedule.Collective(*two)), 0)
  assert found.hidden() == 6 / 8
  assert found.hidden(('fsdp',)) == 1 and found.hidden(('tensor',)) is None


def test_what_xla_makes_agrees_with_what_was_asked_for():
  mesh = jax.make_mesh((2, 4, 1), tuple(MESH),
                       axis_types=(jax.sharding.AxisType.Auto,) * 3)

  def local(w, x):
    def body(x, w):
      w = lax.all_gather(w, 'fsdp', axis=0, tiled=True)
      return jnp.tanh(x @ w), None

    loss = lambda w: lax.scan(jax.checkpoint(body), x, w)[0].sum()
    w = lax.pcast(w, ('replica',), to='varying')
    return lax.psum(jax.grad(loss)(w), 'replica')

  step = jax.jit(jax.shard_map(
      local, mesh=mesh, in_specs=(P(None, 'fsdp'), P(('replica', 'fsdp'))),
      out_specs=P(None, 'fsdp')))
  traced = step.trace(jax.ShapeDtypeStruct((3, 16, 16), jnp.float32),
                      jax.ShapeDtypeStruct((8, 16), jnp.float32))
  asked = counting.count(traced.jaxpr, 8)
  made = schedule.read(traced.lower().compile().as_text(), MESH)
  assert made.open_loops == 0
  assert made.traffic() == asked.traffic
  # 3 layers, gathered forward and back: 6 gathers of 16 x 16, 3 scatters.
  assert [(x.kind, x.count, x.payload) for x in made.traffic()] == [
      ('all-gather', 6, 6 * 1024), ('all-reduce', 1, 3 * 256),
      ('reduce-scatter', 3, 3 * 1024)]


def test_automatic_axis_is_told_from_the_groups():
  mesh = jax.make_mesh((1, 4, 2), tuple(MESH),
                       axis_types=(jax.sharding.AxisType.Auto,) * 3)
  shard = lambda *axes: jax.sharding.NamedSharding(mesh, P(*axes))
  step = jax.jit(lambda x, w: x @ w, out_shardings=shard('fsdp'))
  compiled = step.lower(
      jax.ShapeDtypeStruct((8, 6), jnp.float32,
                           sharding=shard('fsdp', 'tensor')),
      jax.ShapeDtypeStruct((6, 10), jnp.float32,
                           sharding=shard('tensor'))).compile()
  # Each device has a part of every sum: 2 x 10 numbers, added over tensor.
  assert schedule.read(compiled.as_text(), dict(mesh.shape)).traffic() == (
      ('all-reduce', ('tensor',), 1, 80, 2 * 80 / 2),)
