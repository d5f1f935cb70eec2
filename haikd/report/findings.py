"""What the networks of a run do on a sample, as sections of the page."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional

import numpy as np

from haikd.align import similarity
from haikd.report import drawing
from haikd.report import figures
from haikd.report import page
from haikd.report import probe as probe_lib
from haikd.report import statistics

_MAX_DRAWN_CLASSES = 30
_MAX_CONFUSIONS = 12
_MAX_POINTS = 500
_MAX_PANELS = 3


class Findings(NamedTuple):
  """What was found on the sample.

  Attributes:
    family: the kind of output, see `metrics.family_of`.
    observations: of the students, by network; the teacher is in each of them.
    titles: `{network: title}`.
    class_names: V names, or None.
    draws: whether matplotlib is there to draw figures.
  """

  family: str
  observations: Mapping[str, probe_lib.Observation]
  titles: Mapping[str, str]
  class_names: Optional[tuple[str, ...]]
  draws: bool

  def of_networks(self, what: str, name: str) -> dict[str, np.ndarray]:
    """Returns what was measured of each network, the teacher's first.

    Args:
      what: 'sums' or 'columns'.
      name: the key there; networks without it are left out.
    """
    first = next(iter(self.observations.values()))
    found = {'teacher': getattr(first, what)['teacher']} | {
        network: getattr(observation, what)['student']
        for network, observation in self.observations.items()}
    return {network: values[name] for network, values in found.items()
            if name in values}

  def class_name(self, number: int) -> str:
    """Returns the name of a class."""
    names = self.class_names or ()  # There may be more logits than names.
    return names[number] if number < len(names) else str(number)


def _classes(findings):
  """Returns the accuracy of each class, and the confusions that differ."""
  confusions = findings.of_networks('sums', 'confusion')
  if not confusions:
    return None
  accuracies = {network: statistics.class_accuracy(matrix)
                for network, matrix in confusions.items()}
  body = _per_class(findings, accuracies, 'accuracy')
  titles = findings.titles
  differing = statistics.differing_confusions(confusions, _MAX_CONFUSIONS)
  if differing:
    body += page.paragraph(
        'The confusions that differ most: how often each network takes a class '
        'for another.')
    body += page.table(
        ['class', 'taken for', *(titles[x] for x in confusions)],
        [[page.escape(findings.class_name(x.true)),
          page.escape(findings.class_name(x.predicted)),
          *(_amount(x.counts[network]) for network in confusions)]
         for x in differing])
  return page.Section('Classes', body)


def _amount(count):
  """Returns a number of examples as text; weights may make it no integer."""
  return np.format_float_positional(count, precision=2, trim='-')


def _labels(findings):
  """Returns the F1 of each label, where several may be true."""
  counted = findings.of_networks('sums', 'labels')
  if not counted:
    return None
  scores = {}
  for network, (hits, predicted, true) in counted.items():
    whole = predicted + true
    scores[network] = 2 * hits / np.where(whole > 0, whole, np.nan)
  return page.Section('Labels', _per_class(findings, scores, 'F1'))


def _per_class(findings, scores, what):
  """Returns a figure, or else a table, of scores `{network: [V]}`."""
  stacked = np.stack(list(scores.values()))
  known = np.flatnonzero(np.isfinite(stacked).any(axis=0))
  note = ''
  if len(known) > _MAX_DRAWN_CLASSES:
    spread = np.ptp(np.nan_to_num(stacked[:, known]), axis=0)
    order = np.argsort(-spread, kind='stable')[:_MAX_DRAWN_CLASSES]
    note = (f'The {_MAX_DRAWN_CLASSES} of {len(known):,} classes where the '
            'networks differ most. ')
    known = known[order]
  names = [findings.class_name(i) for i in known]
  picked = {network: values[known] for network, values in scores.items()}
  text = page.paragraph(f'{note}{what[0].upper()}{what[1:]} on the examples of '
                        'each class, on the sample.', note=True)
  if findings.draws and len(known):
    return text + page.figure(figures.class_bars(picked, names,
                                                 findings.titles))
  return text + page.table(
      ['class', *(findings.titles[x] for x in picked)],
      [[page.escape(name), *(f'{100 * values[i]:.2f}%'
                             for values in picked.values())]
       for i, name in enumerate(names)])


def _reliability(findings):
  """Returns how sure the networks are beside how often they are right."""
  bins = findings.of_networks('sums', 'bins')
  calibrations = {network: statistics.calibration(values)
                  for network, values in bins.items() if values[:, 0].any()}
  if not calibrations:
    return None
  what = {'multilabel': 'the chance that a label is true',
          'tokens': 'the probability of the most likely token'}.get(
              findings.family, 'the probability of the predicted class')
  body = page.paragraph(
      f'Confidence is {what}, in {len(next(iter(bins.values())))} bins. Bars '
      'are the share that is right, outlines the share of all values in the '
      'bin. A calibrated network follows the dashed line. ECE is the mean '
      'distance from it.', note=True)
  if findings.draws:
    body += page.figure(figures.reliability(
        calibrations, findings.titles, 'confidence'))
  else:
    body += page.table(
        ['network', 'ECE'],
        [[page.escape(findings.titles[network]), f'{100 * x.error:.2f}%']
         for network, x in calibrations.items()])
  return page.Section('Reliability', body)


def _cka(findings):
  """Returns how alike the layers of students and teacher are."""
  panels = {
      findings.titles[network]: similarity.cka(x.grams['student'],
                                               x.grams['teacher'])
      for network, x in findings.observations.items() if x.grams}
  panels = {title: values for title, values in panels.items()
            if np.isfinite(values).any()}
  if not panels:
    return None
  count = len(next(x.grams['student'][0] for x in findings.observations.values()
                   if x.grams))
  body = page.paragraph(
      'Linear CKA of hidden states, means over positions, of '
      f'{count} examples: 1 for layers that agree up to rotation and scale, '
      'near 0 for unrelated ones.', note=True)
  if findings.draws:
    body += page.figure(figures.matrices(
        {title: np.nan_to_num(values) for title, values in panels.items()},
        xlabel='layer of the teacher', ylabel='layer of the student',
        label='CKA'))
  else:
    for title, values in panels.items():
      body += page.table(
          [title, *(f'teacher {j}' for j in range(values.shape[1]))],
          [[f'layer {i}', *(f'{x:.2f}' for x in row)]
           for i, row in enumerate(values)])
  return page.Section('Layers', body)


def _predictions(findings):
  """Returns predicted over true numbers."""
  predictions = findings.of_networks('columns', 'prediction')
  labels = findings.of_networks('columns', 'label')
  if not predictions or not labels or not findings.draws:
    return None
  body = page.paragraph('On the sample; a right prediction lies on the dashed '
                        'line.', note=True)
  outputs = next(iter(labels.values())).shape[1]
  for i in range(min(outputs, _MAX_PANELS)):
    panels = {
        findings.titles[network]: (
            *(x[_some(len(x)), i] for x in (labels[network], values)),
            drawing.COLORS[network])
        for network, values in predictions.items() if network in labels}
    name = f'output {i}' if outputs > 1 else 'value'
    body += page.figure(figures.scatter(
        panels, xlabel=f'true {name}', ylabel=f'predicted {name}'))
  return page.Section('Predictions', body)


def _similarities(findings):
  """Returns how alike the vectors of student and teacher are."""
  vectors = {network: x.vectors for network, x in findings.observations.items()
             if x.vectors}
  if not vectors or not findings.draws:
    return None
  pictures = []
  cosines = findings.of_networks('columns', 'cosine')
  if cosines:
    pictures.append(page.figure(figures.histogram(
        cosines, findings.titles, title="Cosine to the teacher's vectors",
        xlabel='cosine')))
  panels = {}
  for network, grams in vectors.items():
    upper = np.triu_indices(len(grams['student']), 1)
    chosen = _some(len(upper[0]))
    pair = [grams[role][upper][chosen] for role in ('teacher', 'student')]
    panels[findings.titles[network]] = (*pair, drawing.COLORS[network])
  scores = findings.of_networks('columns', 'score')
  body = page.paragraph(
      'How alike two texts are to the student over how alike they are to the '
      'teacher, for pairs of different examples.', note=True)
  body += page.figure(figures.scatter(
      panels, xlabel="cosine of the teacher's", ylabel="cosine of the student's"
  )) if len(upper[0]) else ''
  if scores:
    similarities = findings.of_networks('columns', 'similarity')
    body += page.paragraph('The cosine of two texts over their score.',
                           note=True)
    body += page.figure(figures.scatter({
        findings.titles[network]: (
            *(x[_some(len(x))] for x in (scores[network], values)),
            drawing.COLORS[network])
        for network, values in similarities.items() if network in scores},
        xlabel='score', ylabel='cosine', diagonal=False))
  return page.Section('Vectors', page.row(pictures) + body)


def _some(count):
  """Returns the points that are drawn of so many, from all parts of a split."""
  return np.random.default_rng(0).permutation(count)[:_MAX_POINTS]


# By title: they return None where they make no sense for the kind of output.
SECTIONS: dict[str, Callable[[Findings], Optional[page.Section]]] = dict(
    Classes=_classes, Labels=_labels, Predictions=_predictions,
    Vectors=_similarities, Reliability=_reliability, Layers=_cka)
