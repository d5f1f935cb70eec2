"""A large language model's step: time, FLOPs, memory, and the same by hand.

Goals: half of the device's peak, at most 1.03 of the fused step by hand, and
the plan's memory within 10 %.
"""

import gc
import math
import statistics

import jax
from parts import language
from parts import llama_by_hand
from parts import timing

_SIDES = ('fused', 'materialised')
_GIB = 2**30
_RTOL = 0.02  # Of the losses of two steps in bfloat16.


def run(report):
  """Adds all results.

  Args:
    report: where to.
  """
  size = language.sizes(report.tiny)
  peak = timing.peak_flops(256 if report.tiny else 8192)
  report.add('peak', tflops=peak / 1e12)
  batch = language.batch_of(size)
  step = None
  with report.result('logits') as go:
    if go:
      step = measure(report, 'logits', language.config_of(size), batch, size,
                     peak, None)
  if step is None:
    return
  frozen = step.frozen
  for name in filter(lambda x: report.wants(f'by_hand/{x}'), _SIDES):
    with report.result(f'by_hand/{name}', seconds=20) as go:
      if go:
        _by_hand(report, name, size, step)
    gc.collect()
  step.forget()
  others = dict(
      features=(dict(features=True), None),
      attention=(dict(features=True, attention=True), None),
      attention_long=(dict(features=True, attention=True), 2 * size.length))
  for name, (losses, length) in others.items():
    if not report.wants(name):
      continue
    with report.result(name, seconds=25) as go:
      if go:
        other = language.sizes(report.tiny, length)
        measure(report, name, language.config_of(other, **losses),
                language.batch_of(other), other, peak, frozen).forget()
    gc.collect()


def measure(report, name, config, batch, size, peak, frozen):
  """Adds a step's time, FLOPs and memory; returns the step.

  Args:
    report: where to add them.
    name: of the result.
    config: of the step.
    batch: NumPy arrays.
    size: `language.Sizes`.
    peak: operations a second of the device.
    frozen: the teacher; None to make one.
  """
  device = jax.devices()[0]
  step = language.Step(
      config, batch, frozen=frozen, num_classes=size.vocabulary).start()
  before = timing.memory(device)
  losses = [float(step()) for _ in range(2)]
  used = timing.memory(device)
  times = timing.interleaved(
      dict(step=step), rounds=3,
      seconds=0.05 if report.tiny else 1.0)['step']
  seconds = statistics.median(times)
  flops = language.model_flops(step.program, batch)
  part = language.utilisation(flops, seconds, peak)
  values = dict(
      ms=1e3 * seconds, tokens_per_second=batch.inputs.size / seconds,
      mfu=part['all'], mfu_student=part['student'],
      counted_part_of_peak=step.counted / (seconds * peak),
      teacher_tflop=flops['teacher'] / 1e12,
      student_tflop=flops['student'] / 1e12,
      counted_tflop=step.counted / 1e12, open_loops=step.open_loops,
      planned_gib=step.planned / _GIB, batch=size.batch, length=size.length)
  # The peak is that of the process: a step with a smaller one does not show.
  if used is not None and used > before:
    values.update(peak_gib=used / _GIB, planned_over_peak=step.planned / used)
  elif used is not None:
    values.update(peak_gib_at_most=used / _GIB)
  if name == 'logits':
    values['goals_met'] = dict(
        mfu=part['all'] >= 0.5, memory=abs(
            values.get('planned_over_peak', math.nan) - 1) <= 0.1)
  finite = all(map(math.isfinite, losses))
  report.add(name, ok=finite, losses=losses, **values)
  step.losses = losses
  return step


def _by_hand(report, name, size, step):
  """Adds the ratio of haikd's step to one by hand, in turn."""
  fresh = step.program.init(jax.random.key(0)).params.student
  function, state, kind = _compiled(name, size, fresh, step)
  del fresh
  losses = []

  def side(steps):
    nonlocal state
    for _ in range(steps):
      state, loss = function(state, step.frozen.params, step.batch)
    return loss

  before = timing.memory(jax.devices()[0])
  for _ in range(2):
    losses.append(float(side(1)))
  used = timing.memory(jax.devices()[0])
  times = timing.interleaved(
      dict(haikd=step, by_hand=side), rounds=5,
      seconds=0.05 if report.tiny else 0.5)
  ratio = timing.ratio(times['haikd'], times['by_hand'])
  values = dict(
      ms=timing.median_ms(times['by_hand']),
      haikd_ms=timing.median_ms(times['haikd']), haikd_over_by_hand=ratio,
      attention=kind, planned_gib=language.planned_bytes(function) / _GIB)
  if used is not None and used > before:
    # haikd's own state lies in memory beside it.
    values['peak_gib_with_state_of_haikd'] = used / _GIB
  if name == 'fused':
    values['goal_met'] = ratio['median'] <= 1.03
  agree = all(math.isclose(x, y, rel_tol=_RTOL)
              for x, y in zip(losses, step.losses))
  report.add(f'by_hand/{name}', ok=agree, losses=losses,
             losses_of_haikd=step.losses, **values)


def _compiled(name, size, params, step):
  """Returns (executable, state, what computes attention)."""
  kinds = [None]
  if name == 'fused' and jax.default_backend() == 'gpu':
    kinds = ['cudnn', None]
  for kind in kinds:
    function, state = llama_by_hand.build(
        size, params, fused=name == 'fused', implementation=kind)
    try:
      compiled = function.lower(
          state, step.frozen.params, step.batch).compile()
      return compiled, state, (
          (kind or 'xla') if name == 'fused' else 'materialised')
    except Exception as err:  # Not every build has cuDNN.
      if kind is None:
        raise
      print(f'dot_product_attention with {kind}: {err}'[:300], flush=True)
  raise AssertionError('unreachable')
