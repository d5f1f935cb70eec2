"""ResNet-50 from ResNet-152: the step alone, and the input beside it."""

import importlib.util
import math
import pathlib
import statistics
import time

import jax
import numpy as np
from parts import families
from parts import language
from parts import timing

import haikd
from haikd.core import base
from haikd.data import pipeline

_CONFIG = 'imagenet_resnet50_from_resnet152.py'


def measure(report):
  """Adds images a second and the part of the peak.

  Args:
    report: where to.
  """
  config, side, classes = _config(report.tiny)
  peak = timing.peak_flops(256 if report.tiny else 8192)
  rows = config.batch_size
  generator = np.random.default_rng(0)
  batch = base.Batch(
      generator.random((rows, side, side, 3), np.float32), np.ones(rows, bool),
      generator.integers(0, classes, rows).astype(np.int32))
  step = language.Step(
      config, batch, num_classes=classes, make_teacher=_teacher).start()
  loss = float(step())
  seconds = statistics.median(timing.interleaved(
      dict(step=step), rounds=3,
      seconds=0.05 if report.tiny else 1.0)['step'])
  flops = language.model_flops(step.program, batch)
  part = language.utilisation(flops, seconds, peak)
  report.add(
      'resnet', ok=math.isfinite(loss), batch=rows, ms=1e3 * seconds,
      images_per_second=rows / seconds, mfu=part['all'],
      mfu_student=part['student'], planned_gib=step.planned / 2**30, loss=loss)
  step.forget()
  with report.result('resnet_input', seconds=8) as go:
    if go:
      _input(report, config, rows)


def _input(report, config, rows):
  """How many images a second are read, cropped and mixed."""
  batches = iter(pipeline.build_data(config).train())
  next(batches)
  begin, count = time.perf_counter(), 0
  while count < 8 and (count < 2 or time.perf_counter() - begin < 5):
    next(batches)
    count += 1
  report.add('resnet_input', images_per_second=rows * count / (
      time.perf_counter() - begin))


def _teacher(program, batch):
  init = jax.jit(program.objective.teacher.init)
  one = jax.tree.map(lambda x: x[:1], batch)
  made = families.as_if_trained(init(jax.random.key(1), one))
  return program.freeze(base.Variables(*made))


def _config(tiny):
  """Returns (config, side of an image, number of classes)."""
  path = pathlib.Path(haikd.__file__).parents[1] / 'configs' / _CONFIG
  spec = importlib.util.spec_from_file_location('resnet_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  side, classes, config.batch_size = (32, 10, 4) if tiny else (224, 1000, 256)
  config.data.name = 'synthetic'
  config.data.train = 'train'
  config.data.image_size = side
  config.data.options = dict(
      size=2 * config.batch_size, shape=(side, side, 3), num_classes=classes)
  if tiny:
    small = dict(blocks=(1, 1), channels=(8, 16))
    config.student.options = config.teacher.options = small
  return config, side, classes
