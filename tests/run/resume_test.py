"""A job that goes on from the checkpoint before a damaged one."""

import json

from haikd.run import rates
from haikd.storage import checkpoint
from haikd.storage import fingerprint


def rows(workdir):
  """Returns the rows of the student, without the clock."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return rates.without(map(json.loads, lines))


def test_a_damaged_checkpoint_costs_its_steps_alone(run, tmp_path):
  flags = ('--config.optimizer.schedule=constant', '--config.steps=12')
  assert run(*flags, workdir='whole')[0] == 0
  assert run(*flags, '--config.steps=8')[0] == 0
  newest = tmp_path / 'run/checkpoints/8'
  (newest / 'state' / 'leaves.safetensors').write_bytes(b'')
  code, _, err = run(*flags)
  assert code == 0
  assert err.count(f'{newest} is left out, since it is damaged: ') == 1
  assert rows(tmp_path / 'run') == rows(tmp_path / 'whole')
  run_hash, whole_hash = (
      fingerprint.tree_hash(checkpoint.load_network(tmp_path / workdir))
      for workdir in ('run', 'whole'))
  assert run_hash == whole_hash
