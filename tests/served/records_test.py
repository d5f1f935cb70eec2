"""Records from a server are those of its teacher, whatever it fails at."""

import json
import re
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import launch
from haikd.config import file as config_file
from haikd.core import base
from haikd.data import pipeline
from haikd.engine import mesh as mesh_lib
from haikd.network import network as network_lib
from haikd.run import teach
from haikd.served import client as client_lib
from haikd.storage import files
from haikd.teacher_records import records as records_lib

KEY = 'sk-not-to-be-found'
N, K, ROWS = 16, 6, 20
WORDS = ['<unk>', '</s>', *(f'w{i}' for i in range(38))]
CONFIG = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.log_every = 4, 8, 1
      config.evaluation.batch_size = 8
      config.evaluation.every = 100
      config.data.name, config.data.source_dir = 'text', {folder!r}
      config.data.data_dir = {folder!r} + '/prepared'
      config.data.options = dict(tokenizer={folder!r} + '/words', length=16)
      config.student.model = 'llama'
      config.student.options = dict(width=8, depth=1, heads=2, hidden=8)
      config.teacher.records = dict(
          path={folder!r} + '/records', kind='top_k', k=6, bits=16)
      config.teacher.server.requests = 3
      config.distillation.alpha = None
      config.losses.top = dict(loss='top_k_kl', options=dict(k=5))
      return config
"""
LIVE = """
    import job

    def get_config():
      config = job.get_config()
      config.teacher.model = 'llama'
      config.teacher.options = dict(width=16, depth=1, heads=2, hidden=16)
      config.teacher.init = 'npz:{folder}/teacher.npz'
      config.teacher.records.path = {folder!r} + '/live'
      return config
"""


@pytest.fixture(autouse=True, scope='module')
def one_device():
  build = mesh_lib.build_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_lib, 'build_mesh', lambda shape: build(
        shape, jax.devices()[:1]))
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Texts, their tokenizer, a teacher, its records, and the config of a job."""
  folder = tmp_path_factory.mktemp('served')
  rng = np.random.default_rng(0)
  for split, count in (('train', 40), ('validation', 6), ('test', 6)):
    # Documents of one to thirteen tokens, with their end.
    texts = [' '.join(WORDS[i] for i in rng.integers(2, 40, size))
             for size in rng.integers(0, 13, count)]
    (folder / f'{split}.jsonl').write_text(''.join(
        json.dumps(dict(text=text or 'w0')) + '\n' for text in texts))
  (folder / 'words').mkdir()
  (folder / 'words' / 'tokenizer.json').write_text(json.dumps(dict(
      version='1.0', added_tokens=[], pre_tokenizer=dict(
          type='WhitespaceSplit'), model=dict(
              type='WordLevel', unk_token='<unk>',
              vocab={word: i for i, word in enumerate(WORDS)}))))
  for name, text in (('job', CONFIG), ('job_live', LIVE)):
    (folder / f'{name}.py').write_text(
        textwrap.dedent(text.format(folder=str(folder))))
  config = config_file.load(str(folder / 'job_live.py'))
  network = network_lib.build_network(
      config.teacher, title='teacher', num_classes=len(WORDS))
  haikd.save_network(folder / 'teacher.npz', *weights(network))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(teach, '_SHARD_POSITIONS', (8 * N, 8 * N))
    teach.teach(config, folder / 'teach-live')
  return folder


@pytest.fixture(scope='module')
def predict(folder):
  """Log-probabilities of the teacher by itself, a prompt at a time."""
  config = config_file.load(str(folder / 'job_live.py'))
  network = network_lib.build_network(
      config.teacher, title='teacher', num_classes=len(WORDS))
  frozen = base.Variables(*weights(network))
  run = jax.jit(lambda tokens, mask: jax.nn.log_softmax(network.infer(
      frozen, base.Batch(tokens, mask)).logits.materialise()))

  def predict(tokens):
    padded = np.zeros((1, N), np.int32)
    padded[0, :len(tokens)] = tokens
    return np.asarray(run(padded, np.arange(N)[None] < len(tokens)))[0]

  return predict


def weights(network):
  batch = base.Batch(jnp.zeros((1, N), int), jnp.ones((1, N), bool))
  params, state = jax.jit(network.init)(jax.random.key(0), batch)
  return jax.tree.map(lambda x: 3 * x, params), state


@pytest.fixture
def server(serve, predict, monkeypatch):
  monkeypatch.setattr(client_lib, '_FIRST_DELAY', 0.01)
  monkeypatch.setattr(teach, '_SHARD_POSITIONS', (8 * N, 8 * N))
  monkeypatch.setenv(client_lib.KEY, KEY)
  server = serve(predict)
  server.key, server.texts = KEY, WORDS
  return server


def start(folder, *args, config='job', workdir='run'):
  return launch.main(['launch', f'--config={folder / config}.py',
                      f'--workdir={folder / workdir}', *args])


def ask(folder, server, *args, workdir='run'):
  return start(folder, '--mode=teach', f'--server={server.url}', *args,
               workdir=workdir)


def joined(folder, path):
  """All records of the training split."""
  config = config_file.load(str(folder / 'job.py'))
  data = pipeline.build_data(config)
  rows = data.sizes['train']
  batch = data.pick('train', batch_size=rows)[0]
  return batch, records_lib.Records(str(path)).join(batch, np.zeros(rows, int))


def curve(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return np.array([[row['loss'], row['grad_norm']] for row in map(
      json.loads, lines) if row['split'] == 'train'])


FAULTS = [(429, {'Retry-After': '0.1'}, 'slow down'), None, (500, {}, 'oh'),
          'drop', None, 'half', 'text', (503, {}, ''), None, 'drop']


def test_records_are_those_of_the_teacher_itself(folder, server, capsys):
  together = threading.Barrier(3)

  def wait(answer):
    del answer
    together.wait(20)

  server.faults = [None, wait, wait, wait, *FAULTS]  # The first asks alone.
  assert ask(folder, server) == 0
  out, err = capsys.readouterr()
  assert re.search(r'recorded \d+ rows of \d+ positions', out)
  assert 'positions a second' in out
  assert not (server.faults or together.broken) and server.most_open == 3
  batch, found = joined(folder, folder / 'records')
  _, live = joined(folder, folder / 'live')
  keep = batch.target_mask
  # Documents of a row are asked for one by one: each ends a prompt.
  assert batch.inputs['segments'].max() > 3
  assert not any(WORDS.index('</s>') in x['prompt'][:-1] for x in server.asked)
  np.testing.assert_array_equal(found.teacher.ids[keep], live.teacher.ids[keep])
  step = 2.0**-11
  np.testing.assert_allclose(
      found.teacher.log_probs[keep], live.teacher.log_probs[keep], rtol=0,
      atol=1.01 * step)
  rest, expected = (np.exp(x.teacher.rest[keep].astype(np.float64))
                    for x in (found, live))
  np.testing.assert_allclose(rest, expected, rtol=1.01 * step, atol=2e-6)
  manifest = files.read_json(folder / 'records' / 'manifest.json')
  assert manifest['network'] == dict(served=dict(
      name='tiny', root='/models/tiny', max_length=1000))
  assert len(manifest['shards']) > 1
  # Students learn the same.
  assert start(folder, workdir='student') == 0
  assert start(folder, config='job_live', workdir='student-live') == 0
  served, live = (curve(folder / f'student{x}') for x in ('', '-live'))
  assert len(served) == 4
  np.testing.assert_allclose(served, live, rtol=1e-3)
  out, err = capsys.readouterr()
  for path in folder.rglob('*'):
    assert not path.is_file() or KEY.encode() not in path.read_bytes()
  assert KEY not in out + err


def content(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())
          if not path.name.startswith('.')}


def test_a_server_that_dies_is_gone_on_with_where_it_was(
    folder, server, capsys):
  path = folder / 'again'
  to = f'--config.teacher.records.path={path}'
  # It dies after the first shard, for good; then comes back.
  server.faults = [None] * 25 + [(503, {}, 'gone')] * 1000
  assert ask(folder, server, to) == 3
  line = capsys.readouterr().err.splitlines()[-1]
  assert re.match('haikd: --server must be a server that answers; .* 503', line)
  kept = content(path)
  assert '00000.array_record' in kept and 'manifest.json' not in kept
  # Other weights under the same name.
  predict, server.faults = server.predict, []
  server.predict = lambda tokens: np.roll(predict(tokens), 1, axis=-1)
  assert ask(folder, server, to) == 3
  assert re.search('tiny has changed: the total variation of its predictions is'
                   r' 0\.[1-9]', capsys.readouterr().err)
  assert content(path) == kept
  # What was kept of it is damaged.
  server.predict, probe = predict, path / 'probe.json'
  for damage in (b'{"ids": [[1]], "log_probs": [[0.0]]}', b'{"x": 1}', b'[]'):
    probe.write_bytes(damage)
    assert ask(folder, server, to) == 3
    assert re.search(r'probe.json must be as it was written; got .*Remove it',
                     capsys.readouterr().err)
  probe.write_bytes(kept['probe.json'])
  asked = len(server.asked)
  assert ask(folder, server, to) == 0
  found = content(path)
  assert len(server.asked) - asked < len(
      {tuple(x['prompt']) for x in server.asked})
  assert all(found[name] == kept[name] for name in kept)
  _, records = joined(folder, path)
  _, live = joined(folder, folder / 'live')
  np.testing.assert_array_equal(records.teacher.ids, live.teacher.ids)
  # Weights from elsewhere.
  server.models[0]['root'] = '/models/other'
  assert ask(folder, server, to) == 3
  assert 'must be empty, or hold records of this teacher' in (
      capsys.readouterr().err)


@pytest.mark.parametrize('override,message', [
    ('records.kind=sampled', "kind must be 'top_k' with --server; got "
     "'sampled', which draws from all classes"),
    ('records.kind=hidden', "got 'hidden', which keeps states"),
    ('records.temperature=2.0', 'temperature must be 1 with --server'),
    ('init=npz:teacher.npz', 'init must be None and train.steps 0 with'),
    ('train.steps=3', 'init must be None and train.steps 0 with'),
    ('server.model=other', "got 'other', where it serves tiny"),
    ('server.requests=0', 'requests must be positive'),
])
def test_what_a_server_cannot_give_is_refused_by_name(
    override, message, folder, server, capsys):
  # Options of another kind would be refused first.
  whole = ([f'--config.teacher.records={{"path": "{folder}/no", "kind": '
            f'"{override[13:]}"}}'] if 'kind' in override else
           [f'--config.teacher.{override}'])
  assert ask(folder, server, *whole, workdir='refused') == 2
  assert message in capsys.readouterr().err.splitlines()[-1]
  assert not server.asked


@pytest.mark.parametrize('args,change,code,message', [
    (['--config.data.options.prune=True'], {}, 2, 'prune must be False with'),
    (['--config.data.options.length=12'], dict(max_model_len=12), 2,
     'length must be below the max_model_len of tiny, 12'),
    ([], dict(texts=['<unk>', *WORDS[:39]]), 3,
     "with the tokenizer of the data; .* the token .* is 'w.*, where it is 'w"),
    ([], dict(id=41), 3, 'gives the id 41, where the data has 40 tokens'),
])
def test_another_tokenizer_or_too_short_a_server_is_refused(
    args, change, code, message, folder, server, capsys, tmp_path):
  if 'texts' in change:
    server.texts = change['texts']
  elif 'id' in change:
    server.texts, predict = None, server.predict
    server.predict = lambda tokens: np.pad(
        predict(tokens) - 2, ((0, 0), (0, 2)), constant_values=-1)
  server.models[0].update(
      {x: change[x] for x in change if x == 'max_model_len'})
  path = f'--config.teacher.records.path={tmp_path}/records'
  assert ask(folder, server, path, *args, workdir='refused') == code
  assert re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_training_on_served_records_wants_no_teacher_in_the_config(
    folder, server, capsys):
  if not (folder / 'records').exists():
    assert ask(folder, server) == 0
  code = start(folder, f'--config.teacher.records.path={folder}/records',
               config='job_live', workdir='refused')
  assert code == 2
  assert 'init must be None and train.steps 0 with the records in' in (
      capsys.readouterr().err)


def test_server_is_a_flag_of_teach_alone(folder, capsys):
  assert start(folder, '--server=http://localhost:1') == 2
  assert '--server must be left out unless --mode=teach' in (
      capsys.readouterr().err)
