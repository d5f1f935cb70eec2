"""`python -m haikd.bench`: a case after the other, as long as time is left."""

import json
import os
import pathlib
import subprocess
import sys

import haikd

ROOT = pathlib.Path(haikd.__file__).parents[1]
# The most telling first.
_CASES = ('logits', 'attention', 'vision', 'large_vocabulary', 'long_sequence',
          'loss_logits_64k', 'loss_attention_2k', 'fashion_convnet',
          'digits_vit_matching', 'digits_mlp', 'features', 'digits_vit',
          'loss_logits_8k', 'loss_attention_1k', 'loss_logits_150k')
_TINY = ('digits_mlp',)


def run(report):
  """Adds all results.

  Args:
    report: where to.
  """
  for name in _TINY if report.tiny else _CASES:
    with report.result(f'float32/{name}', seconds=20) as go:
      if go:
        _measure(report, name)
  report.add('bfloat16', skipped='the benchmark has no precision to choose')


def _measure(report, name):
  """Runs a case; again with exact products if the sides disagree."""
  for precision in ('default', 'highest'):
    path = report.scratch / f'{name}.json'
    environment = dict(os.environ)
    if precision == 'highest':
      environment['JAX_DEFAULT_MATMUL_PRECISION'] = precision
    done = subprocess.run(
        [sys.executable, '-m', 'haikd.bench', f'--case={name}', '--rounds=3',
         f'--output={path}'],
        cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=max(report.left() - 2, 1), check=False)
    if done.returncode == 0:
      break
    # TensorFloat-32 is too coarse for the two sides to agree.
    if 'same loss' not in done.stderr:
      break
  if done.returncode:
    report.add(f'float32/{name}', ok=False, precision=precision,
               error=' '.join(done.stderr.split())[-400:])
    return
  summary = json.loads(path.read_text())['cases'][name]['summary']
  report.add(
      f'float32/{name}', precision=precision,
      wall_ratio=summary['ratios']['wall'],
      ms={side: 1e3 * summary[side]['step_seconds']
          for side in ('haikd', 'by_hand')})
