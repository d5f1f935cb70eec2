"""The examples where student and teacher differ most, and their attention."""

from collections.abc import Callable, Mapping
import math
from typing import Optional

import numpy as np

from haikd.report import figures
from haikd.report import findings as findings_lib
from haikd.report import inputs as inputs_lib
from haikd.report import page

_MAX_EXAMPLES = 10
_MAX_TOKENS = 12  # Positions, from as many texts or fewer.
_TOKENS_OF_ONE = 3  # Of them, from one text.
_CONTEXT = 24  # Tokens before a position.
_MAX_MAPPED = 3  # Examples whose attention is shown.
_MAX_NAMED = 32  # Positions of a map that are named.

NETWORK = 'student'  # Whose disagreements they are.
TITLE = 'Where student and teacher differ most'


def choose(columns: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
  """Returns the rows of the sample to show, the largest differences first.

  Args:
    columns: `{role: columns}` of the student's observation.

  Returns:
    Rows of the columns; none if the networks cannot be compared.
  """
  student, teacher = (columns[role] for role in ('student', 'teacher'))
  limit = _MAX_EXAMPLES
  if 'similarity' in student and 'similarity' in teacher:
    distance = np.abs(student['similarity'] - teacher['similarity'])
  elif 'kl' in student:  # The text of the largest position.
    distance, limit = _position_kl(student).max(axis=1), _MAX_TOKENS
  elif 'divergence' in student:
    distance = student['divergence']
  else:
    return np.arange(0)
  order = np.argsort(-np.nan_to_num(distance), kind='stable')
  return order[:limit]


def section(findings: findings_lib.Findings, rows: np.ndarray,
            shown: inputs_lib.Shown, *,
            is_causal: bool) -> Optional[page.Section]:
  """Returns the examples where the student differs most from the teacher.

  Args:
    findings: what was found on the sample.
    rows: of the sample, from `choose`.
    shown: the examples of these rows.
    is_causal: whether a position predicts the token after it, rather than its
      own.
  """
  if not len(rows):
    return None
  if findings.family == 'tokens':
    return _tokens(findings, rows, shown, is_causal)
  describe = dict(classes=_describe_class, multilabel=_describe_labels,
                  values=_describe_values, embeddings=_describe_vectors)
  entries = [describe[findings.family](findings, rows[i], shown, i)
             for i in range(len(rows))]
  if shown.is_image:
    cards = ''.join(
        f'<div class="card">{shown.html(i)}<dl>' + ''.join(
            f'<dt>{page.escape(name.removeprefix("student "))}</dt>'
            f'<dd>{value}</dd>'
            for name, value in entry.items()) + '</dl></div>'
        for i, entry in enumerate(entries))
    body = f'<div class="cards">{cards}</div>'
  else:
    body = page.table(
        ['example', *entries[0]],
        [[shown.html(i), *entry.values()] for i, entry in enumerate(entries)],
        words=True)
  text = page.paragraph('Of the sample, the largest difference first.',
                        note=True)
  return page.Section(TITLE, text + body)


def attention(findings: findings_lib.Findings, shown: inputs_lib.Shown,
              maps: Mapping[str, np.ndarray]) -> Optional[page.Section]:
  """Returns attention maps of teacher and student side by side.

  Args:
    findings: what was found on the sample.
    shown: the examples, of which the first have maps.
    maps: `{role: [n, N, M]}`.
  """
  if not maps or not findings.draws:
    return None
  text = 'The last layer, the mean over heads. '
  titles = [findings.titles[x] for x in ('teacher', NETWORK)]
  pictures = []
  for i in range(len(maps['student'])):
    pair = [maps[role][i] for role in ('teacher', 'student')]
    image, patches = shown.image(i), [_received(x) for x in pair]
    if image is not None and all(x is not None for x in patches):
      says = 'How much attention each patch of an image receives.'
      pictures.append(page.figure(figures.grids(
          image, dict(zip(titles, patches)), title='image')))
      continue
    says = ('Rows attend to columns; colours are on the scale of the square '
            'root.')
    pieces = [shown.pieces(i, role) for role in ('teacher', 'student')]
    ticks: list = []
    if all(pieces):  # All else is padding.
      pair = [x[np.ix_(list(names), list(names))]
              for x, names in zip(pair, pieces)]
      if max(map(len, pieces)) <= _MAX_NAMED:
        ticks = [list(names.values()) for names in pieces]
    pictures.append(page.figure(figures.matrices(
        dict(zip(titles, pair)), xlabel='position attended to',
        ylabel='position', top=None, ticks=ticks)))
  body = page.paragraph(text + says, note=True) + ''.join(pictures)
  return page.Section('Attention', body)


def mapped(rows: np.ndarray) -> np.ndarray:
  """Returns the rows of the sample whose attention is shown."""
  return rows[:_MAX_MAPPED]


def _received(attention_map):
  """Returns how much attention each patch of a square grid gets, or None."""
  count = attention_map.shape[1]
  for extra in (0, 1):  # Without and with a token of the class.
    side = math.isqrt(count - extra)
    if side > 1 and side * side == count - extra:
      return attention_map.mean(axis=0)[extra:].reshape(side, side)
  return None


def _judged(text: str, is_right: Optional[bool]) -> str:
  kind = '' if is_right is None else ' class="right"' if is_right else (
      ' class="wrong"')
  return f'<span{kind}>{page.escape(text)}</span>'


def _position_kl(student):
  """Returns the KL of each position, `[n, N]`; -1 where one does not count."""
  return np.where(student['counts'], student['kl'], -1)


def _columns(findings, name):
  return findings.of_networks('columns', name).items()


def _describe_class(findings, row, shown, number):
  """Returns the label of an example, and what each network takes it for."""
  entry, truth = {}, None
  labels = shown.batch.labels
  if labels is not None and labels.ndim == 1 and labels.dtype.kind == 'i':
    truth = int(labels[number])
    entry['label'] = page.escape(
        findings.class_name(truth) if truth >= 0 else 'none')
  confidences = dict(_columns(findings, 'confidence'))
  for network, predicted in _columns(findings, 'predicted'):
    found = int(predicted[row])
    entry[findings.titles[network]] = _judged(
        f'{findings.class_name(found)} ({confidences[network][row]:.0%})',
        None if truth is None or truth < 0 else found == truth)
  return {**entry, **_divergence(findings, row, 'KL')}


def _describe_labels(findings, row, shown, number):
  """Returns the labels of an example, and those that each network chooses."""
  names = lambda chosen: ', '.join(
      findings.class_name(i) for i in np.flatnonzero(chosen)) or 'none'
  entry = {}
  if shown.batch.labels is not None:
    entry['labels'] = page.escape(names(shown.batch.labels[number] > 0.5))
  for network, chosen in _columns(findings, 'chosen'):
    entry[findings.titles[network]] = page.escape(names(chosen[row]))
  return {**entry, **_divergence(findings, row, 'mean difference')}


def _describe_values(findings, row, shown, number):
  """Returns the numbers of an example, and those that are predicted."""
  text = lambda values: ', '.join(f'{x:.4g}' for x in np.ravel(values)[:4])
  entry = {}
  if shown.batch.labels is not None:
    entry['true'] = text(shown.batch.labels[number])
  for network, prediction in _columns(findings, 'prediction'):
    entry[findings.titles[network]] = text(prediction[row])
  return {**entry, **_divergence(findings, row, 'squared difference')}


def _describe_vectors(findings, row, shown, number):
  """Returns how alike the texts of an example are, or how alike vectors are."""
  entry = {}
  labels = shown.batch.labels
  similarities = dict(_columns(findings, 'similarity'))
  if similarities and labels is not None:
    entry['score'] = f'{float(labels[number]):.4g}'
  for network, similarity in similarities.items():
    entry[f'cosine, {findings.titles[network]}'] = f'{similarity[row]:.3f}'
  for network, cosine in _columns(findings, 'cosine'):
    entry[f'cosine to teacher, {findings.titles[network]}'] = (
        f'{cosine[row]:.3f}')
  return entry


def _divergence(findings, row, title):
  columns = findings.observations[NETWORK].columns['student']
  return {title: f'{columns["divergence"][row]:.3g}'}


def _tokens(findings, rows, shown, is_causal):
  """Returns the positions of texts where the student differs most."""
  columns = findings.observations[NETWORK].columns
  student, teacher = (columns[role] for role in ('student', 'teacher'))
  kl = _position_kl(student)[rows]
  taken: dict[int, int] = {}
  lines = []
  for flat in np.argsort(-kl, axis=None, kind='stable'):
    i, position = map(int, np.unravel_index(flat, kl.shape))
    if kl[i, position] < 0 or len(lines) == _MAX_TOKENS:
      break
    if taken.get(i, 0) < _TOKENS_OF_ONE:
      taken[i] = taken.get(i, 0) + 1
      lines.append(_line(shown, i, position, is_causal, [
          role['predicted'][rows[i], position] for role in (teacher, student)
      ], kl[i, position]))
  if not lines:
    return None
  text = page.paragraph(
      'The positions with the largest KL from teacher to student, in nats, of '
      f'texts of the sample; at most {_TOKENS_OF_ONE} of a text.', note=True)
  return page.Section(TITLE, text + page.table(
      ['text', 'next token' if is_causal else 'hidden token',
       findings.titles['teacher'], findings.titles[NETWORK], 'KL'],
      lines, words=True))


def _line(shown, number, position, is_causal, predicted, kl):
  """Returns the cells of a position."""
  batch = shown.batch
  inputs = batch.inputs
  tokens = inputs['tokens'] if isinstance(inputs, dict) else inputs
  row = np.asarray(tokens[number])
  mask = np.broadcast_to(batch.mask[number], row.shape)
  end = position + 1 if is_causal else position
  start = max(end - _CONTEXT, 0)
  before = row[start:end][mask[start:end]]
  context = page.escape(shown.decode(before))
  truth: Optional[int] = None
  if batch.labels is not None and batch.labels[number, position] >= 0:
    truth = int(batch.labels[number, position])
  if not is_causal:
    after = row[end + 1:end + _CONTEXT][mask[end + 1:end + _CONTEXT]]
    context += f' <mark>?</mark> {page.escape(shown.decode(after))}'
  word: Callable[[int], str] = lambda token: repr(shown.decode([token]))
  return [('… ' if start else '') + context,
          page.escape('–' if truth is None else word(truth)),
          *(_judged(word(int(token)), None if truth is None else
                    int(token) == truth) for token in predicted),
          f'{kl:.2f}']
