"""Tests of how metrics are shown."""

import math

import pytest

from haikd import metrics

SCORES = {score.name: score for score in metrics.scores()}


@pytest.mark.parametrize('name, value, options, text', (
    ('accuracy', 0.98765, {}, '98.77%'),
    ('accuracy', 0.0125, dict(sign='+'), '+1.25%'),
    ('accuracy', 0.0125, dict(unit=False), '1.25'),
    ('perplexity', 23.4567, {}, '23.46'),
    ('perplexity', math.inf, {}, 'inf'),
    ('spearman', 0.81236, {}, '0.8124'),
    ('kl', -0.5, dict(sign='+'), '-0.5000'),
    ('top5_agreement', 1.0, {}, '100.00%'),
))
def test_value_is_shown(name, value, options, text):
  assert SCORES[name].show(value, **options) == text
