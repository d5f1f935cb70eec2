"""How metrics are shown: their order, names and precision."""

from collections.abc import Collection
from typing import NamedTuple

from haikd.core import registry

TOP5 = 'top5_agreement'  # Language models alone have it.

_HUGE = 1e6  # Larger values are shown with three digits and an exponent.


class Score(NamedTuple):
  """How a metric is shown.

  Attributes:
    name: of the metric.
    title: of its column in a table.
    digits: how many digits follow the point.
    percent: whether it is a fraction that is shown in percent.
    less_is_better: whether the smaller of two values is the better one.
    of_tokens: whether only results of language models show it.
  """

  name: str
  title: str
  digits: int = 4
  percent: bool = False
  less_is_better: bool = False
  of_tokens: bool = False

  def show(self, value: float, *, sign: str = '', unit: bool = True) -> str:
    """Returns a value as text.

    Args:
      value: of the metric.
      sign: '+' to show the sign of positive values too.
      unit: whether to write the percent sign.
    """
    value *= 100 if self.percent else 1
    if abs(value) >= _HUGE:
      return f'{value:{sign}.3g}'
    end = '%' if self.percent and unit else ''
    return f'{value:{sign}.{self.digits}f}{end}'


SCORES = (Score('accuracy', 'accuracy', 2, True),
          Score('cross_entropy', 'cross-entropy', less_is_better=True),
          Score('binary_cross_entropy', 'cross-entropy', less_is_better=True),
          Score('label_f1', 'F1'),
          Score('miou', 'mIoU'),
          Score('mse', 'squared error', less_is_better=True),
          Score('mae', 'absolute error', less_is_better=True),
          Score('r2', 'R²'),
          Score('perplexity', 'perplexity', 2, less_is_better=True),
          Score('kl', 'KL to teacher', less_is_better=True),
          Score('reverse_kl', 'reverse KL', less_is_better=True,
                of_tokens=True),
          Score('binary_kl', 'KL to teacher', less_is_better=True),
          Score('teacher_mse', 'squared error to teacher', less_is_better=True),
          Score('acceptance', 'acceptance', 2, True, of_tokens=True),
          Score('agreement', 'agreement', 2, True),
          Score(TOP5, 'top-5 agreement', 2, True),
          Score('cosine', 'cosine to teacher'),
          Score('mrr', 'MRR'),
          Score('pair_order', 'pair order', 2, True),
          Score('spearman', 'Spearman'),
          Score('pearson', 'Pearson'))

# The curve of an evaluation: the first of these metrics that it has.
CURVES = (('perplexity', 'Perplexity'),
          ('mrr', 'Mean reciprocal rank'),
          ('spearman', "Spearman's correlation"),
          ('r2', 'R²'),
          ('label_f1', 'F1 over labels'),
          ('miou', 'mIoU'),
          ('accuracy', 'Accuracy'),
          ('agreement', 'Agreement with the teacher'),
          ('cosine', "Cosine to the teacher's"),
          ('cross_entropy', 'Cross-entropy (nats)'),
          ('kl', 'KL to the teacher (nats)'))


def is_less_better(metric: str) -> bool:
  """Returns whether the smaller of two values of a metric is the better one."""
  return any(x.less_is_better for x in scores() if x.name == metric)


def shown(measured: Collection[str]) -> tuple[Score, ...]:
  """Returns the metrics that the table of some results shows.

  Args:
    measured: the metrics of any network.
  """
  of_tokens = TOP5 in measured
  return tuple(x for x in scores() if x.name in measured and
               (of_tokens or not x.of_tokens))


def scores() -> tuple[Score, ...]:
  """Returns how all metrics are shown, with those of the user's own."""
  own = ((name, registry.metrics[name]) for name in registry.metrics.names())
  return (*SCORES, *(
      Score(name, name, less_is_better=x.less_is_better) for name, x in own))
