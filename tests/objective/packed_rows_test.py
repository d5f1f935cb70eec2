"""The objective of documents packed into rows is that of separate documents.

The test starts from files: it reads the same documents in both forms and
compares loss and gradient.
"""

import json

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers

from haikd import config as config_lib
from haikd.core import base
from haikd.data import pipeline
from haikd.objective import build as build_lib

N = 12  # Positions of a row.
# With the token that ends each document they fill two rows of 12.
LENGTHS = (4, 6, 11)
SIZES = dict(depth=2, heads=2, key_value_heads=1)
MODELS = {
    'llama': dict(tied=True),
    'gpt2': dict(positions=N, tied=True),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('texts')
  words = ['</s>', '<unk>', *'abcdefgh']
  made = tokenizers.Tokenizer(models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(words[:2])
  made.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(
      json.dumps(dict(eos_token='</s>', unk_token='<unk>')))
  rng = np.random.RandomState(0)
  texts = [' '.join(rng.choice(words[2:], length)) for length in LENGTHS]
  rows = ''.join(json.dumps(dict(text=text)) + '\n' for text in texts)
  for split in ('train', 'validation', 'test'):
    (folder / f'{split}.jsonl').write_text(rows)
  return folder


def make_config(folder, model, form):
  config = config_lib.base()
  config.batch_size = 2
  config.data.name, config.data.source_dir = 'text', str(folder)
  config.data.data_dir = str(folder / 'prepared')
  config.data.options = dict(
      tokenizer=str(folder), length=N, form=form)
  options = SIZES | MODELS[model]
  if model == 'gpt2':
    del options['key_value_heads']
  for network, width in ((config.teacher, 16), (config.student, 8)):
    network.model, network.options = model, dict(options, width=width)
  config.distillation.alpha = 0.7
  config.distillation.use_feature_matching = True
  return config


def objective_and_batch(config):
  """Returns an objective, and the split `test` as one batch."""
  config.evaluation.batch_size = 8
  data = pipeline.build_data(config)
  objective = build_lib.build_objective(
      config, spec=data.spec, num_classes=data.num_classes)
  batch, = data.evaluation('test')
  return objective, batch


@pytest.mark.parametrize('model', (
    'llama', pytest.param('gpt2', marks=pytest.mark.slow)))
def test_loss_and_gradient_are_those_of_separate_documents(folder, model):
  results = {}
  for form in ('packed', 'padded'):
    objective, batch = objective_and_batch(make_config(folder, model, form))
    rows = dict(packed=2, padded=3)[form]
    assert batch.mask.shape == (rows, N) and batch.mask.sum() == sum(
        LENGTHS) + len(LENGTHS)
    key = jax.random.key(0)
    frozen = base.Variables(*jax.jit(objective.teacher.init)(key, batch))
    params, state = jax.jit(objective.init)(jax.random.key(1), batch, frozen)

    def loss(params, objective=objective, batch=batch, state=state,
             frozen=frozen):
      sums, _ = objective.sums(params, state, frozen, batch, jax.random.key(2))
      return objective.combine(sums, 0)

    results[form] = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  (packed, packed_grads), (padded, padded_grads) = results.values()
  assert set(packed[1]) == {'kl_divergence', 'cross_entropy',
                            'feature_matching'}
  for one, two in zip(jax.tree.leaves(packed), jax.tree.leaves(padded)):
    np.testing.assert_allclose(one, two, rtol=1e-5)
  for one, two in zip(jax.tree.leaves(packed_grads),
                      jax.tree.leaves(padded_grads)):
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
  assert max(np.abs(x).max() for x in jax.tree.leaves(packed_grads)) > 0.01


@pytest.mark.parametrize('model', MODELS)
def test_no_document_depends_on_its_neighbour(folder, model):
  """Changing the first document leaves the second's logits as they were."""
  objective, batch = objective_and_batch(make_config(folder, model, 'packed'))
  params, state = jax.jit(objective.student.init)(jax.random.key(1), batch)
  tokens = batch.inputs['tokens'].copy()
  first = batch.inputs['segments'] == 1
  tokens[first] = 9 - tokens[first]

  @jax.jit
  def logits(tokens):
    changed = batch._replace(inputs=dict(batch.inputs, tokens=tokens))
    output, _ = objective.student.apply(
        params, state, None, changed, is_training=False)
    return output.logits.materialise()

  outputs = [logits(x) for x in (batch.inputs['tokens'], tokens)]
  others = batch.mask & ~first
  assert others.any()
  np.testing.assert_array_equal(outputs[0][others], outputs[1][others])
  assert not np.allclose(outputs[0][first], outputs[1][first])
