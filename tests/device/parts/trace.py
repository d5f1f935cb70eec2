"""Reads what `jax.profiler` writes: kernels, gaps, copies and host syncs."""

import collections
import contextlib
import gzip
import json
import pathlib
import re

import jax

_COPY = re.compile(r'memcpy|memset', re.IGNORECASE)
# Calls of the driver, or of JAX, that wait for the device.
_SYNC = re.compile(
    r'synchronize|BlockHostUntilReady|block_until_ready|Await', re.IGNORECASE)
# Threads of a CPU that run a program's operations, in the tiny form.
_CPU_THREADS = re.compile(r'XLA|Eigen|CpuClient', re.IGNORECASE)


@contextlib.contextmanager
def recorded(folder):
  """Records what runs inside; its trace lies below the folder afterwards."""
  with jax.profiler.trace(str(folder)):
    yield


def read(folder):
  """Returns the events of a recorded trace.

  Args:
    folder: that was recorded into.

  Returns:
    (events of the device, events of the host): `(name, start, duration)` in
    microseconds, in order of their start.

  Raises:
    FileNotFoundError: nothing was recorded there.
  """
  paths = sorted(pathlib.Path(folder).rglob('*trace.json.gz'))
  if not paths:
    raise FileNotFoundError(f'no trace.json.gz below {folder}')
  with gzip.open(paths[-1], 'rt') as file:
    events = json.load(file)['traceEvents']
  processes, threads = {}, {}
  for event in events:
    if event.get('ph') == 'M' and event['name'] == 'process_name':
      processes[event['pid']] = event['args']['name']
    if event.get('ph') == 'M' and event['name'] == 'thread_name':
      threads[event['pid'], event.get('tid')] = event['args']['name']
  on_gpu = any('/device:' in name for name in processes.values())
  device, host = [], []
  for event in events:
    if event.get('ph') != 'X':
      continue
    one = event['name'], float(event['ts']), float(event.get('dur', 0))
    process = processes.get(event['pid'], '')
    thread = threads.get((event['pid'], event.get('tid')), '')
    if '/device:' in process:
      # Beside the streams there are lines for modules and steps.
      if thread.startswith('Stream'):
        device.append(one)
    else:
      host.append(one)
      if not on_gpu and _CPU_THREADS.search(thread):
        device.append(one)
  order = lambda event: event[1]
  return sorted(device, key=order), sorted(host, key=order)


def summarise(device, host, steps):
  """Returns what a trace says of a step.

  Args:
    device: events from `read`.
    host: likewise.
    steps: that were recorded.

  Returns:
    A dict: `span_ms` from the first kernel to the last, the part of it that is
    `busy`, `kernels` a step, `largest` (the five with most time, and their part
    of all), `gaps` and `copies` and `syncs`.
  """
  copies = [x for x in device if _COPY.search(x[0])]
  kernels = [x for x in device if not _COPY.search(x[0])]
  by_name = collections.defaultdict(lambda: [0.0, 0])
  for name, _, duration in kernels:
    by_name[name][0] += duration
    by_name[name][1] += 1
  total = sum(time for time, _ in by_name.values())
  largest = sorted(by_name.items(), key=lambda x: -x[1][0])[:5]
  gaps = _gaps(device)
  begin = min((x[1] for x in device), default=0.0)
  end = max((x[1] + x[2] for x in device), default=0.0)
  syncs = collections.defaultdict(lambda: [0.0, 0])
  for name, _, duration in host:
    if _SYNC.search(name):
      syncs[name][0] += duration
      syncs[name][1] += 1
  milliseconds = lambda x: x / 1e3 / steps
  return dict(
      span_ms=milliseconds(end - begin),
      busy=1 - sum(gaps) / max(end - begin, 1e-9),
      kernels=len(kernels) / steps,
      largest=[
          dict(name=name[:120], ms=milliseconds(time), count=count / steps,
               part=time / max(total, 1e-9))
          for name, (time, count) in largest],
      gaps=dict(
          count=len(gaps) / steps, ms=milliseconds(sum(gaps)),
          longest_us=max(gaps, default=0.0),
          over_10_us=sum(x > 10 for x in gaps) / steps),
      copies=dict(
          count=len(copies) / steps,
          ms=milliseconds(sum(x[2] for x in copies)),
          names=sorted({x[0][:60] for x in copies})[:8]),
      syncs={
          name[:60]: dict(count=count / steps, ms=milliseconds(time))
          for name, (time, count) in sorted(
              syncs.items(), key=lambda x: -x[1][0])[:5]})


def _gaps(events):
  """Returns the times in which nothing runs, between the first and last."""
  gaps, busy_until = [], None
  for _, start, duration in events:
    if busy_until is not None and start > busy_until:
      gaps.append(start - busy_until)
    end = start + duration
    busy_until = end if busy_until is None else max(busy_until, end)
  return gaps
