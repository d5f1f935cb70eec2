"""A teacher is recorded, killed, and learned from without being there."""

import json
import re
import shutil
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import config as config_lib
from haikd import launch
from haikd.config import file as config_file
from haikd.core import base
from haikd.engine import mesh as mesh_lib
from haikd.network import network as network_lib
from haikd.objective import recorded as objective_recorded
from haikd.run import recorded
from haikd.run import teach
from haikd.run import trainees
from haikd.storage import files
from haikd.teacher_records import folder as folder_lib
from haikd.teacher_records import records as records_lib
from haikd.teacher_records import rows as rows_lib

V, N, ROWS = 40, 12, 21
CONFIG = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.log_every = 4, 8, 1
      config.evaluation.batch_size = 8
      config.evaluation.every = 100
      config.data.name, config.data.source_dir = 'tokens', {folder!r}
      config.data.options = dict(length=12, vocabulary=40)
      config.teacher.model = config.student.model = 'llama'
      config.teacher.options = dict(width=16, depth=1, heads=2, hidden=16)
      config.student.options = dict(width=8, depth=1, heads=2, hidden=8)
      config.teacher.init = 'npz:{folder}/teacher.npz'
      config.teacher.records = dict(path={records!r}, bits=16, copies=2)
      config.distillation.temperature = 1.0
      return config
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The data, the teacher's weights, and the config of a job."""
  folder = tmp_path_factory.mktemp('teach')
  rng = np.random.default_rng(0)
  for split, rows in (('train', ROWS), ('validation', 2), ('test', 2)):
    np.save(folder / f'{split}.npy', rng.integers(0, V, N * rows))
  (folder / 'job.py').write_text(textwrap.dedent(CONFIG.format(
      folder=str(folder), records=str(folder / 'records'))))
  config = load(folder)
  network = network_lib.build_network(
      config.teacher, title='teacher', num_classes=V)
  batch = base.Batch(jnp.zeros((1, N), int), jnp.ones((1, N), bool))
  params, state = jax.jit(network.init)(jax.random.key(0), batch)
  haikd.save_network(
      folder / 'teacher.npz', jax.tree.map(lambda x: 3 * x, params), state)
  return folder


@pytest.fixture(autouse=True, scope='module')
def one_device():
  """Runs on one device, where a test does not say otherwise."""
  with pytest.MonkeyPatch.context() as patch:
    on(patch, 1)
    yield


def on(patch, devices, build=mesh_lib.build_mesh):
  patch.setattr(mesh_lib, 'build_mesh', lambda shape, chosen=None: build(
      shape, jax.devices()[:devices] if chosen is None else chosen))


def load(folder):
  return config_file.load(str(folder / 'job.py'))


def start(folder, *args, workdir='run'):
  return launch.main(['launch', f'--config={folder / "job.py"}',
                      f'--workdir={folder / workdir}', *args])


@pytest.fixture(scope='module')
def records(folder):
  """The folder of undisturbed records, in three shards."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(teach, '_SHARD_POSITIONS', (8 * N, 8 * N))
    assert start(folder, '--mode=teach') == 0
  return folder / 'records'


def content(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_row_has_records_of_what_the_teacher_predicts(folder, records):
  manifest = files.read_json(records / 'manifest.json')
  assert (manifest['rows'], manifest['positions']) == (ROWS, 2 * ROWS * (N - 1))
  assert [x['records'] for x in manifest['shards']] == [16, 16, 10]
  opened = records_lib.Records(str(records))
  rows = np.load(folder / 'train.npy').reshape(ROWS, N).astype(np.int32)
  mask = np.ones((ROWS, N), bool)
  target = mask & (np.arange(N) < N - 1)
  batch = base.Batch(rows, mask, target_mask=target)
  first, second, third = (
      opened.join(batch, np.full(ROWS, epoch)).teacher for epoch in range(3))
  # Copies differ in what was drawn, and follow one another.
  np.testing.assert_array_equal(first.ids[..., :16], second.ids[..., :16])
  assert (first.ids != second.ids).any()
  np.testing.assert_array_equal(first.ids, third.ids)
  assert not first.weights[:, -1].any()
  # The teacher by itself, without the pipeline.
  config = load(folder)
  network = network_lib.build_network(
      config.teacher, title='teacher', num_classes=V)
  variables = jax.jit(network.init)(jax.random.key(0), batch)
  frozen = base.Variables(*jax.tree.map(lambda x: 3 * x, variables))
  p = jax.nn.softmax(jax.jit(network.infer)(frozen, batch).logits.materialise())
  p = np.asarray(p)[:, :-1]
  top = -np.sort(-p, axis=-1)[..., :16]
  np.testing.assert_allclose(first.weights[:, :-1, :16], top, rtol=1e-3)
  np.testing.assert_allclose(
      first.entropy[:, :-1], -np.sum(p * np.log(p), -1), rtol=1e-4,
      atol=1e-6)


def test_killed_recording_ends_bitwise_as_undisturbed(
    folder, records, tmp_path, monkeypatch):
  monkeypatch.setattr(teach, '_SHARD_POSITIONS', (8 * N, 8 * N))
  path = f'--config.teacher.records.path={tmp_path / "again"}'
  write = folder_lib.write_shard
  # Killed before the first shard is there, and while the second is written.
  for number in (0, 1):
    with monkeypatch.context() as patch:

      def cut(where, at, made, positions, number=number):
        if at == number:
          (where / f'.{at:05d}.array_record.{"0" * 32}').write_bytes(b'half')
          raise KeyboardInterrupt
        return write(where, at, made, positions)

      patch.setattr(folder_lib, 'write_shard', cut)
      assert start(folder, '--mode=teach', path) == 130
    assert not (tmp_path / 'again' / 'manifest.json').exists()
  # A shard that is damaged meanwhile is made anew.
  shard = tmp_path / 'again' / '00000.array_record'
  damaged = bytearray(shard.read_bytes())
  damaged[100] ^= 1
  shard.write_bytes(damaged)
  assert start(folder, '--mode=teach', path) == 0
  found = {name: x for name, x in content(tmp_path / 'again').items()
           if not name.startswith('.')}
  assert found == content(records)


def test_records_in_a_bucket_are_those_on_disk(
    folder, records, buckets, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(teach, '_SHARD_POSITIONS', (8 * N, 8 * N))
  path = '--config.teacher.records.path=gs://bucket/x'
  write = folder_lib.write_shard

  def cut(where, at, made, positions):
    if at == 1:
      raise KeyboardInterrupt
    return write(where, at, made, positions)

  with monkeypatch.context() as patch:
    patch.setattr(folder_lib, 'write_shard', cut)
    assert start(folder, '--mode=teach', path) == 130
  address, shard = '/bucket/x', '/bucket/x/00000.array_record'
  kept = buckets.store[shard]
  assert start(folder, path, workdir='bucket') == 3  # They are not complete.
  assert 'not complete' in capsys.readouterr().err
  assert start(folder, '--mode=teach', path) == 0
  assert buckets.store[shard] is kept  # It was not made again.

  def objects():
    return {name.removeprefix(f'{address}/'): x.getvalue()
            for name, x in buckets.store.items() if name.startswith(address)}

  assert objects() == content(records)
  assert start(folder, path, workdir='bucket') == 0
  assert '3 shards of gs://bucket/x, ' in capsys.readouterr().err
  copies = sorted((tmp_path / 'haikd' / 'records').iterdir())
  assert len(copies) == 3
  # A copy that is cut is fetched again; a damaged object is found.
  copies[0].write_bytes(b'cut')
  config = load(folder)
  config.teacher.records.path = 'gs://bucket/x'
  recorded.open_records(config)
  assert copies[0].stat().st_size > 3
  copies[0].unlink()
  whole = objects()
  for name, x in whole.items():
    if name.endswith('array_record'):
      buckets().pipe_file(f'{address}/{name}', b'\1' + x[1:])
  with pytest.raises(haikd.core.checks.DataError, match=(
      'gs://bucket/x/0000.*must be as it was written; got another checksum')):
    recorded.open_records(config)
  assert start(folder, '--mode=teach', path) == 0
  assert objects() == whole


def curve(workdir, term='kl_divergence'):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return np.array([
      [row[name] for name in ('loss', f'loss/{term}', 'grad_norm')]
      for row in rows if row['split'] == 'train'])


@pytest.mark.parametrize('meshes', (
    (8, 1), pytest.param((8, 4, 2, 1), marks=pytest.mark.slow)))
def test_training_needs_no_teacher_and_is_the_same_on_any_mesh(
    folder, records, tmp_path, monkeypatch, capsys, meshes):
  away = shutil.copytree(folder, tmp_path / 'away')
  (away / 'teacher.npz').unlink()
  build = network_lib.build_network

  def refuse(config, *, title, **options):
    assert title != 'teacher'
    return build(config, title=title, **options)

  monkeypatch.setattr(network_lib, 'build_network', refuse)
  curves = []
  for devices in meshes:
    on(monkeypatch, devices)
    workdir = f'run-{devices}'
    assert start(away, workdir=workdir) == 0
    curves.append(curve(away / workdir))
  assert len(curves[0]) == 4
  *others, one = curves
  for other in others:
    np.testing.assert_allclose(other[:, :2], one[:, :2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(other[:, 2], one[:, 2], rtol=1e-5)
  out, err = capsys.readouterr()
  assert 'the teacher does not run' in err
  results = files.read_json(away / 'run-8' / 'result.json')
  assert set(results) == {'student'} and 'kl' not in results['student']
  assert start(away, '--mode=eval', workdir='run-1') == 0


@pytest.fixture
def config(folder, records):
  return load(folder)


def test_plan_counts_no_teacher(config):
  from haikd.plan import planning
  step = planning.build_step(config, jax.devices())
  assert not jax.tree.leaves(step.frozen)
  assert step.batch.teacher.ids.shape == (8, N, 48)


@pytest.mark.parametrize('change,message', [
    (lambda shard, _: shard.unlink(),
     r'00001.array_record must be the shard of \d+ bytes .*; got none'),
    (lambda shard, x: shard.write_bytes(x[:-9]), r'; got \d+ bytes'),
    (lambda shard, _: (shard.parent / 'manifest.json').unlink(),
     'must be a folder that --mode=teach has filled; got .* not complete'),
], ids=['missing', 'short', 'incomplete'])
def test_incomplete_records_are_refused(change, message, config, records,
                                        tmp_path):
  path = shutil.copytree(records, tmp_path / 'copy')
  shard = path / '00001.array_record'
  change(shard, shard.read_bytes())
  config.teacher.records.path = str(path)
  with pytest.raises(haikd.core.checks.DataError, match=message):
    recorded.open_records(config)


def test_every_flipped_byte_of_a_record_is_found(records, tmp_path, folder):
  path = shutil.copytree(records, tmp_path / 'copy')
  rows = np.load(folder / 'train.npy').reshape(ROWS, N).astype(np.int32)
  mask = np.ones((ROWS, N), bool)
  batch = base.Batch(rows, mask, target_mask=mask & (np.arange(N) < N - 1))
  shard = path / '00000.array_record'
  whole = shard.read_bytes()
  places = np.flatnonzero(np.frombuffer(whole, np.uint8))
  found = 0
  for place in places[::len(places) // 40]:
    damaged = bytearray(whole)
    damaged[place] ^= 16
    shard.write_bytes(damaged)
    try:
      got = records_lib.Records(str(path)).join(batch, np.zeros(ROWS, int))
    except haikd.core.checks.DataError as err:
      assert '00000.array_record' in str(err) and '\n' not in str(err)
      found += 1
    else:  # Not a byte of a record.
      shard.write_bytes(whole)
      whole_batch = records_lib.Records(str(path)).join(
          batch, np.zeros(ROWS, int))
      jax.tree.map(np.testing.assert_array_equal, got, whole_batch)
  assert found > 20


def test_a_row_that_was_not_recorded_is_found_before_training(
    config, folder, tmp_path):
  rows = np.load(folder / 'train.npy')
  rows[-3] = (rows[-3] + 1) % V  # Of the last row.
  for split in ('validation', 'test'):
    shutil.copy(folder / f'{split}.npy', tmp_path)
  np.save(tmp_path / 'train.npy', rows)
  config.data.source_dir = str(tmp_path)
  with pytest.raises(haikd.core.checks.DataError, match=(
      r'none of a row in .*, or whether haikd\[images\] resizes images\.')):
    trainees.build(config, mesh_lib.build_mesh(config.mesh))
  config.data.train = f'train[:{ROWS - 1}]'  # The others are there.
  trainees.build(config, mesh_lib.build_mesh(config.mesh))


@pytest.mark.parametrize('override,message', [
    ('teacher.records.exact=8', r'records.exact must be that of .*got 8, where '
     'it is 16'),
    ('teacher.records.kind=hidden', 'records.bits must be left out with kind'),
    ('teacher.init=npz:other.npz', r'teacher.init must be that of the records'),
    ('teacher.options.hidden=32', r'teacher.options must be that of'),
    ('distillation.temperature=2.0', 'temperature of kl_divergence must be that'
     r' of config.teacher.records, 1.0; got 2.0'),
    ('losses.x.loss=reverse_kl', "x must be a loss that takes records of kind='"
     "sampled'; got reverse_kl. Use kl_divergence"),
    ('distillation.use_feature_matching=True', 'must be a loss on logits'),
    ('data.options.length=11', 'must hold a record of each row of config.data'),
    ('data.options.vocabulary=41', 'must have a logit for each class that was '
     'recorded; got 41 logits'),
])
def test_what_does_not_fit_is_refused_before_training(
    override, message, folder, records, capsys):
  assert start(folder, f'--config.{override}', workdir='other') in (2, 3)
  err = capsys.readouterr().err.splitlines()
  line, = [x for x in err if ' must ' in x]
  assert re.search(message, line), line


def test_teach_refuses_a_folder_of_other_records(
    folder, records, capsys, monkeypatch):
  monkeypatch.setattr(teach, '_SHARD_POSITIONS', (8 * N, 8 * N))
  before = content(records)
  assert start(folder, '--mode=teach', '--config.teacher.records.draws=8') == 3
  err = capsys.readouterr().err
  assert 'with draws=32 where it should be 8' in err
  assert content(records) == before


def test_digests_are_of_what_the_teacher_sees():
  batch = base.Batch(
      dict(tokens=np.arange(6, dtype=np.int32).reshape(2, 3),
           segments=np.ones((2, 3), np.int32)), np.ones((2, 3), bool))
  first = rows_lib.digests(batch)
  assert len(set(first)) == 2
  swapped = jax.tree.map(lambda x: x[::-1], batch)
  assert rows_lib.digests(swapped) == first[::-1]
  other = batch._replace(inputs=dict(batch.inputs, segments=np.zeros(
      (2, 3), np.int32)))
  assert not set(rows_lib.digests(other)) & set(first)
  # Labels are none of the teacher's business.
  assert rows_lib.digests(batch._replace(labels=np.ones((2, 3)))) == first


def test_random_numbers_depend_on_the_row_alone():
  one, two = (rows_lib.uniform(digest, 3, 1000) for digest in (b'a', b'b'))
  assert one.shape == (1000, 3) and 0 <= one.min() and one.max() < 1
  np.testing.assert_allclose(one.mean(0), 0.5, atol=0.05)
  assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.06
  np.testing.assert_array_equal(one, rows_lib.uniform(b'a', 3, 1000))


def step_of(config):
  """The losses and the gradient of the student's first step."""
  student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  program, records = student.program, student.records
  if records is None:
    frozen = program.freeze(student.start('teacher').network)
  else:
    known = objective_recorded.of_records(records)
    frozen = program.freeze(known.variables(records.unembedding))
  state = program.init(jax.random.key(0))
  batch = next(student.data.train())

  @jax.jit
  def run(params, frozen, batch):

    def loss(params):
      sums, _ = program.objective.sums(
          params, state.net_state, frozen, batch, jax.random.key(0))
      means = {name: x[0].mean() for name, x in sums.items()}
      return sum(means.values()), means

    return jax.grad(loss, has_aux=True)(params)

  gradient, means = run(state.params, frozen, batch)
  return means, np.concatenate(
      [np.ravel(x) for x in jax.tree.leaves(gradient)])


@pytest.mark.parametrize('options,losses,rtol', [
    (dict(kind='hidden'), dict(reverse_kl={}, kl_divergence={}), 0.02),
    pytest.param(dict(kind='top_k', k=6, bits=16), dict(top_k_kl=dict(k=5)),
                 2e-3, marks=pytest.mark.slow),
    pytest.param(dict(kind='sampled', exact=40, draws=1, bits=16),
                 dict(kl_divergence={}), 2e-3, marks=pytest.mark.slow),
], ids=['hidden', 'top_k', 'sampled'])
def test_records_of_a_kind_give_what_the_live_teacher_gives(
    options, losses, rtol, folder, tmp_path):
  config = load(folder)
  temperature = 2.0 if options['kind'] == 'hidden' else 1.0
  config.distillation.alpha = None
  for name, fields in losses.items():
    config.losses[f'my_{name}'] = dict(
        loss=name, options=dict(fields, temperature=temperature))
  config.teacher.records = dict(path=str(tmp_path / 'records'), **options)
  config.teacher.options.logits_soft_cap = 8.0
  config_lib.validate(config)
  teach.teach(config, tmp_path / 'work')
  means, gradient = step_of(config)
  config.teacher.records = {}
  expected, live = step_of(config)
  assert means.keys() == expected.keys()
  for name in means:
    np.testing.assert_allclose(means[name], expected[name], rtol=rtol)
  assert np.linalg.norm(gradient - live) < rtol * np.linalg.norm(live)


@pytest.mark.slow
def test_top_k_by_the_command_line(folder, tmp_path):
  records = (f'--config.teacher.records={{"path": "{tmp_path}/records", '
             '"kind": "top_k", "k": 6, "bits": 16}')
  losses = ('--config.distillation.alpha=None',
            '--config.losses.own.loss=top_k_kl',
            '--config.losses.own.options={"k": 5, "temperature": 1.0}')
  assert start(folder, '--mode=teach', records, *losses,
               workdir=tmp_path / 'teach') == 0
  assert start(folder, records, *losses, workdir=tmp_path / 'recorded') == 0
  assert start(folder, '--config.teacher.records={}', *losses,
               workdir=tmp_path / 'live') == 0
  recorded, live = (curve(tmp_path / workdir, 'own')
                    for workdir in ('recorded', 'live'))
  np.testing.assert_allclose(recorded, live, rtol=5e-3)


def test_teacher_of_classes_is_trained_and_recorded(run, tmp_path):
  options = [f'--config.teacher.records.path={tmp_path / "records"}',
             '--config.teacher.records.temperature=2.0', '--config.steps=2']
  code, out, _ = run('--mode=teach', *options)
  assert code == 0 and 'recorded 50 rows of 50 positions' in out
  shutil.rmtree(tmp_path / 'run' / 'teacher')
  config = config_file.load(str(tmp_path / 'tiny.py'))
  config.teacher.records = dict(path=str(tmp_path / 'records'),
                                temperature=2.0)
  student, _, teacher = trainees.build_all(
      config, mesh_lib.build_mesh(config.mesh))
  assert teacher is None
  batch = next(student.data.train())
  assert batch.teacher.ids.shape == (16, 35)  # All 3 classes, and 32 draws.
  np.testing.assert_allclose(batch.teacher.weights.sum(-1), 1, rtol=1e-6)
  augmented = '--config.data.augment.flip.probability=0.5'
  code, _, err = run(*options, augmented, workdir='other')
  assert code == 2 and 'must have the same examples in each epoch' in err
  trained = '--config.teacher.train.steps=5'
  code, _, err = run(*options, trained, workdir='other')
  assert code == 2 and 'config.teacher.train must be that of the' in err
