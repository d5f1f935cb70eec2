"""A server that answers from SmolLM2, with its own tokenizer.

HAIKD_SMOLLM2 is the GGUF file, which `python configs/data/austen.py` fetches.
"""

import json
import os

import jax
import numpy as np
import pytest

from haikd import config as config_lib
from haikd import interop
from haikd.core import base
from haikd.data import pipeline
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.engine import mesh as mesh_lib
from haikd.network import network as network_lib
from haikd.run import job
from haikd.run import served
from haikd.run import teach
from haikd.teacher_records import records as records_lib

N, K = 48, 20
TEXTS = (
    'It is a truth universally acknowledged, that a single man in possession '
    'of a good fortune, must be in want of a wife.',
    'However little known the feelings or views of such a man may be on his '
    'first entering a neighbourhood, this truth is so well fixed in the minds '
    'of the surrounding families, that he is considered as the rightful '
    'property of some one or other of their daughters.',
    'What is his name?', 'Bingley.', 'Is he married or single?',
    '“Oh! single, my dear, to be sure! A single man of large fortune; four or '
    'five thousand a year. What a fine thing for our girls!”')


def build_config(folder, gguf):
  config = config_lib.base()
  config.steps, config.batch_size, config.log_every = 3, 4, 1
  config.evaluation.batch_size, config.evaluation.every = 4, 100
  config.report.write = False
  config.data.name, config.data.source_dir = 'text', str(folder)
  config.data.data_dir = str(folder / 'prepared')
  config.data.options = dict(tokenizer=f'gguf:{gguf}', length=N)
  config.student.model = 'llama'
  config.student.options = dict(width=16, depth=1, heads=2, hidden=16)
  config.teacher.records = dict(
      path=str(folder / 'records'), kind='top_k', k=K, bits=16)
  config.teacher.server.requests = 2
  config.distillation.alpha = None
  config.losses.top = dict(loss='top_k_kl', options=dict(k=K))
  return config


def build_predict(gguf):
  """Returns log-probabilities of SmolLM2 by itself, given a prompt."""
  init = f'gguf:{gguf}'
  described = interop.describe(init)
  config = config_lib.network()
  config.model, config.options = described.model, described.options
  network = network_lib.build_network(
      config, title='teacher', num_classes=described.vocabulary)
  batch = base.Batch(np.zeros((1, N), np.int32), np.ones((1, N), bool))
  mesh = mesh_lib.build_mesh(config_lib.base().mesh, jax.devices()[:1])
  place = lambda tree: mesh_lib.abstract(
      tree, jax.tree.map(lambda _: mesh_lib.replicated(mesh), tree))
  shapes = map(place, jax.eval_shape(network.init, jax.random.key(0), batch))
  frozen = base.Variables(*interop.load(
      'init', init, base.Variables(*shapes), options=described.options))
  run = jax.jit(lambda frozen, batch: jax.nn.log_softmax(
      network.infer(frozen, batch).logits.materialise()))

  def predict(tokens):
    padded = np.zeros((1, N), np.int32)
    padded[0, :len(tokens)] = tokens
    return np.asarray(run(frozen, base.Batch(
        padded, np.arange(N)[None] < len(tokens))))[0]

  return predict


def curve(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return np.array([row['loss'] for row in map(json.loads, lines)
                   if row['split'] == 'train'])


@pytest.mark.slow
@pytest.mark.skipif('HAIKD_SMOLLM2' not in os.environ,
                    reason='HAIKD_SMOLLM2 must be the GGUF file')
def test_records_and_students_are_those_of_smollm2_itself(
    serve, tmp_path, monkeypatch):
  every = jax.devices()
  monkeypatch.setattr(jax, 'devices', lambda *platform: every[:1])
  gguf = os.environ['HAIKD_SMOLLM2']
  for split, times in (('train', 3), ('validation', 1), ('test', 1)):
    (tmp_path / f'{split}.jsonl').write_text(''.join(
        json.dumps(dict(text=text)) + '\n' for text in TEXTS * times))
  config = build_config(tmp_path, gguf)
  server = serve(build_predict(gguf))
  tokenizer = tokenizer_lib.load(f'gguf:{gguf}')
  server.texts = [tokenizer.decode([x]) for x in range(tokenizer.size)]
  server.faults = [None, (429, {'Retry-After': '0'}, ''), 'half', 'drop']
  served.teach(config, tmp_path / 'teach', server.url)
  here = config.copy_and_resolve_references()
  here.teacher.init = f'gguf:{gguf}'
  here.teacher.records.path = str(tmp_path / 'here')
  teach.teach(here, tmp_path / 'teach-here')
  data = pipeline.build_data(config)
  rows = data.sizes['train']
  batch = data.pick('train', batch_size=rows)[0]
  keep, zeros = batch.target_mask, np.zeros(rows, int)
  found, expected = (
      records_lib.Records(str(tmp_path / name)).join(batch, zeros).teacher
      for name in ('records', 'here'))
  assert keep.sum() > 200
  step = 2.0**-11
  np.testing.assert_allclose(found.log_probs[keep], expected.log_probs[keep],
                             rtol=0, atol=1.5 * step)
  # Tokens that are as likely may change places.
  assert np.mean(found.ids[keep] == expected.ids[keep]) > 0.99
  np.testing.assert_allclose(
      np.exp(found.rest[keep]), np.exp(expected.rest[keep]),
      rtol=1.5 * step, atol=1e-5)
  curves = []
  for name, chosen in (('student', config), ('student-here', here)):
    job.train(chosen, tmp_path / name)
    curves.append(curve(tmp_path / name))
  assert len(curves[0]) == 3
  np.testing.assert_allclose(*curves, rtol=1e-3)
