"""Each model type from transformers through haikd and back.

A random checkpoint that transformers wrote is trained for two steps, exported,
and loaded by transformers again: it computes what haikd's student computes,
and the folder says what it said before.
"""

import importlib.util
import json
import pathlib
import runpy

import haiku as hk
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from haikd import interop
from haikd import launch
from haikd.core import base
from haikd.core import registry
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.engine import mesh as mesh_lib
from haikd.interop import pretrained_source
from haikd.run import resolve
from haikd.run import trainees
from haikd.storage import checkpoint

HERE = pathlib.Path(__file__).parent
DECODERS = ('llama', 'llama_llama3', 'mistral', 'mixtral', 'qwen2', 'qwen3',
            'qwen3_moe', 'smollm3', 'phi3', 'olmo2', 'granite', 'gemma2',
            'gemma3', 'gpt2')
ENCODERS = ('bert', 'roberta', 'xlm_roberta', 'distilbert', 'mpnet',
            'modernbert', 't5', 'mt5')
HEADS = tuple(f'{name}_{head}' for head in ('classification', 'masked_lm')
              for name in ('bert', 'roberta', 'distilbert', 'mpnet',
                           'modernbert'))
IMAGES = ('vit', 'deit', 'deit_teacher')
# Where the files are, and which version wrote them.
UNEQUAL = ('_name_or_path', 'transformers_version')

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def maker():
  """The module that writes folders."""
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  spec = importlib.util.spec_from_file_location(
      'make_trips', HERE / 'make_trips.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def travel(case, maker, folder):
  """Makes, trains and exports a case in a folder."""
  maker.make(case, folder)
  call = ['launch', f'--config={folder / "job.py"}',
          f'--workdir={folder / "run"}']
  assert launch.main(call) == 0
  assert launch.main(
      [*call, '--mode=export', f'--output={folder / "out"}']) == 0


def load(folder):
  """Returns the network in a folder, in the class that its config names."""
  import transformers
  config = transformers.AutoConfig.from_pretrained(folder)
  return getattr(transformers, config.architectures[0]).from_pretrained(
      folder).eval()


def trained(folder):
  """Returns what haikd's student computes of inputs and a mask."""
  described = interop.describe(f'hf:{folder / "student"}')
  function = registry.models[described.model].function

  def forward(inputs, mask):
    more = {} if mask is None else dict(mask=mask)
    return function(inputs, is_training=False, **more, **described.options)

  params, _ = checkpoint.load_network(folder / 'run')
  return lambda inputs, mask=None: hk.transform(forward).apply(
      params, None, inputs, mask)


def pad(rows, side):
  """Returns rows as an array, and where they are not padded."""
  longest = max(map(len, rows))

  def fill(row):
    missing = (0, longest - len(row))
    return np.pad(row, missing if side == 'right' else missing[::-1])

  return (np.stack([fill(row) for row in rows]),
          np.stack([fill(np.ones(len(row), bool)) for row in rows]))


def check_ids_and_chats(folder, maker, has_chats):
  """The source's and the export's tokenizers are one, in haikd too."""
  import transformers
  before, after = (transformers.AutoTokenizer.from_pretrained(folder / name)
                   for name in ('student', 'out'))
  texts = maker.texts(200, seed=5)
  expected = before(texts).input_ids
  assert after(texts).input_ids == expected
  assert len({token for ids in expected for token in ids}) > 200
  ours = tokenizer_lib.load(str(folder / 'out'))
  assert [list(x.ids) for x in ours.encode_batch(texts)] == expected
  assert [after.decode(ids) for ids in expected] == [
      before.decode(ids) for ids in expected]
  for name in ('special_tokens_map', 'model_max_length', 'padding_side'):
    assert getattr(after, name) == getattr(before, name), name
  if has_chats:
    for prompt in (False, True):
      rendered, again = (
          each.apply_chat_template(
              maker.CHAT, tokenize=False, add_generation_prompt=prompt)
          for each in (before, after))
      assert again == rendered
      assert 'Γεια  σου, мир?' in rendered


def check_config(folder, generates):
  """transformers sees the config and the way to generate as they were."""
  import transformers
  known = [transformers.AutoConfig]
  known += [transformers.GenerationConfig] if generates else []
  for reader in known:
    before, after = (
        {name: value
         for name, value in
         reader.from_pretrained(folder / each).to_dict().items()
         if name not in UNEQUAL} for each in ('student', 'out'))
    assert after == before
  assert generates == (folder / 'out' / 'generation_config.json').exists()


def compare(case, ours, theirs):
  """Compares outputs, and says how far they are apart."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  difference = np.abs(ours - theirs).max()
  print(f'{case}: {difference:.1e} of {np.abs(theirs).max():.1f}')
  assert difference <= 1e-4


def check_tensors(folder):
  """The export has the tensors of the source, and training changed them."""
  before, after = (
      safetensors.load_file(folder / name / 'model.safetensors')
      for name in ('student', 'out'))
  # An embedding is pooled in another way.
  assert {name for name in before.keys() ^ after.keys()
          if 'pooler' not in name} == set()
  assert any((before[name] != after[name]).any() for name in after)


def result(folder):
  content = json.loads((folder / 'run' / 'result.json').read_text())
  return content['student']['cross_entropy']


def cross_entropy(logits, labels):
  """Returns the mean over labels that are not negative, with PyTorch."""
  import torch
  return float(torch.nn.functional.cross_entropy(
      torch.as_tensor(np.asarray(logits)).double().flatten(0, -2),
      torch.as_tensor(np.asarray(labels)).long().flatten(), ignore_index=-100))


def evaluated(folder):
  """Returns the batches that were evaluated, without what is padding."""
  config = resolve.from_pretrained(
      runpy.run_path(str(folder / 'job.py'))['get_config']())
  data = trainees.build(config, mesh_lib.build_mesh(config.mesh)).data
  for batch in data.evaluation('test'):
    yield jax.tree.map(np.asarray, batch)


def records(folder):
  return [json.loads(line)
          for line in (folder / 'test.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('case', DECODERS)
def test_decoder_returns(case, maker, fresh, tmp_path):
  import torch
  import transformers
  travel(case, maker, tmp_path)
  check_tensors(tmp_path)
  check_config(tmp_path, generates=True)
  check_ids_and_chats(tmp_path, maker, has_chats=True)
  model = load(tmp_path / 'out')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  documents = [tokenizer(record['text']).input_ids + [tokenizer.eos_token_id]
               for record in records(tmp_path)]
  apply = trained(tmp_path)
  for side in ('left', 'right'):
    rows, mask = pad(documents[:3], side)
    expected = maker.goldens('make_decoder_goldens').compute(
        model, rows, mask.astype(int))['logits']
    logits = apply(rows, mask).materialise()
    compare(case, logits[mask], expected[mask])
  labels, logits = [], []
  for ids in documents:
    # Longer texts continue in another row.
    for row in maker.cut(ids):
      # A fresh one each: some models remember the longest row.
      fresh_model = load(tmp_path / 'out')
      with torch.no_grad():
        logits.append(fresh_model(torch.tensor([row])).logits[0, :-1])
      labels += row[1:]
  assert result(tmp_path) == pytest.approx(
      cross_entropy(torch.cat(logits), labels), rel=1e-5)


@pytest.mark.parametrize('case', ENCODERS + HEADS)
def test_encoder_returns(case, maker, fresh, tmp_path):
  import torch
  import transformers
  travel(case, maker, tmp_path)
  check_tensors(tmp_path)
  check_config(tmp_path, generates=False)
  check_ids_and_chats(tmp_path, maker, has_chats=False)
  model, apply = load(tmp_path / 'out'), trained(tmp_path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  rows = records(tmp_path)
  encoded = tokenizer(
      [row['text'] for row in rows], padding=True, truncation=True,
      max_length=maker.LENGTH, return_tensors='pt')
  with torch.no_grad():
    output = model(**encoded)
  mask = encoded['attention_mask'].numpy().astype(bool)
  computed = apply(dict(tokens=encoded['input_ids'].numpy()), mask)
  if maker.task_of(case) == 'embedding':
    weights = encoded['attention_mask'][..., None]
    mean = (output.last_hidden_state * weights).sum(1) / weights.sum(1)
    compare(case, computed.vectors, torch.nn.functional.normalize(mean))
  elif maker.task_of(case) == 'classification':
    compare(case, computed, output.logits)
    assert result(tmp_path) == pytest.approx(cross_entropy(
        output.logits, [row['label'] for row in rows]), rel=1e-5)
  else:
    compare(case, computed.materialise()[mask], output.logits[mask])
    # Which words are hidden is for haikd to choose.
    labels, logits = [], []
    for batch in evaluated(tmp_path):
      with torch.no_grad():
        logits.append(model(
            input_ids=torch.tensor(batch.inputs).long(),
            attention_mask=torch.tensor(batch.mask).long()).logits)
      labels.append(np.where(batch.target_mask, batch.labels,
                             base.IGNORED_LABEL))
    assert result(tmp_path) == pytest.approx(cross_entropy(
        torch.cat(logits), np.concatenate(labels)), rel=1e-5)


@pytest.mark.parametrize('case', IMAGES)
def test_encoder_of_images_returns(case, maker, fresh, tmp_path):
  import torch
  import transformers
  travel(case, maker, tmp_path)
  check_tensors(tmp_path)
  check_config(tmp_path, generates=False)
  before, after = (
      transformers.AutoImageProcessor.from_pretrained(tmp_path / name).to_dict()
      for name in ('student', 'out'))
  assert after == before
  model, apply = load(tmp_path / 'out'), trained(tmp_path)
  labels, logits = [], []
  for batch in evaluated(tmp_path):
    with torch.no_grad():
      logits.append(model(
          torch.tensor(batch.inputs.transpose(0, 3, 1, 2))).logits)
    compare(case, apply(batch.inputs), logits[-1])
    labels.append(np.where(batch.mask, batch.labels, base.IGNORED_LABEL))
  assert result(tmp_path) == pytest.approx(cross_entropy(
      torch.cat(logits), np.concatenate(labels)), rel=1e-5)


def test_all_model_types_return(maker):
  types = {maker.goldens('make_decoder_goldens').build(case).config.model_type
           for case in DECODERS}
  types |= {maker.goldens('make_encoder_goldens').build(case).config.model_type
            for case in ENCODERS + IMAGES}
  assert types == {model_type for family in pretrained_source.families()
                   for model_type in family.MODEL_TYPES}
