"""Jobs of regression, several labels and segmentation, against scikit-learn.

The metrics of `result.json` are computed again, by scikit-learn from what the
trained networks return.
"""

import json
import pathlib

import numpy as np
import pytest
from scipy import special
from sklearn import metrics

import haikd
from haikd import launch
from haikd.core import registry

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def of_numbers(output, label):
  return dict(mse=metrics.mean_squared_error(label, output),
              mae=metrics.mean_absolute_error(label, output),
              r2=metrics.r2_score(label, output))


def of_several_labels(output, label):
  return dict(
      accuracy=np.mean((output > 0) == label),
      binary_cross_entropy=np.mean([
          metrics.log_loss(label[:, i], special.expit(output[:, i]),
                           labels=[0, 1]) for i in range(label.shape[1])]),
      label_f1=_present(metrics.f1_score, label, output > 0))


def of_places(output, label):
  output, label = output.reshape(-1, output.shape[-1]), label.ravel()
  classes = np.arange(output.shape[-1])
  predicted = output.argmax(-1)
  return dict(
      accuracy=metrics.accuracy_score(label, predicted),
      cross_entropy=metrics.log_loss(
          label, special.softmax(output.astype(np.float64), axis=-1),
          labels=classes),
      f1=_present(metrics.f1_score, label, predicted, labels=classes),
      miou=_present(metrics.jaccard_score, label, predicted, labels=classes))


def _present(score, label, predicted, labels=None):
  """Returns the mean over classes that are true or predicted somewhere."""
  values = score(label, predicted, average=None, labels=labels, zero_division=0)
  if labels is None:
    present = (label.any(axis=0) | predicted.any(axis=0))
  else:
    present = np.isin(labels, label) | np.isin(labels, predicted)
  return values[present].mean()


@pytest.mark.parametrize('name, dataset, compute', (
    ('friedman_mlp_from_mlp', 'friedman', of_numbers),
    ('documents_mlp_from_mlp', 'documents', of_several_labels),
    ('scenes_fcn_from_fcn', 'scenes', of_places),
))
def test_metrics_are_those_of_scikit_learn(
    fresh, tmp_path, capsys, name, dataset, compute):
  with registry.models.temporary():
    code = launch.main([
        'launch', f'--config={CONFIGS / name}.py:smoke',
        f'--workdir={tmp_path}'])
    assert code == 0, capsys.readouterr().err
    results = json.loads((tmp_path / 'result.json').read_text())
    split = registry.datasets[dataset].function('test')
    columns = {key: value[:64] for key, value in split.columns.items()}
    label = columns.pop('label')
    for which in ('teacher', 'student_alone', 'student'):
      output = np.asarray(haikd.load(tmp_path, which).apply(
          *columns.values()), np.float64)
      if dataset == 'friedman':
        output = output[:, 0]
      expected = compute(output, label)
      assert {key: results[which][key] for key in expected} == pytest.approx(
          expected, rel=1e-6, abs=1e-6)
