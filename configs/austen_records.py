"""What students make of records: sampled, the 12 likeliest tokens, or all.

  python configs/data/austen.py
  python -m haikd --config=configs/austen_draft.py:start
  python -m haikd --config=configs/austen_records.py:sampled --mode=teach
  python -m haikd --config=configs/austen_records.py:top_12 --mode=teach
  python -m haikd --config=configs/austen_records.py --mode=sweep --seeds=3

The student of austen_draft.py, which has learned the training chapters without
the teacher, learns from SmolLM2: from the live teacher, from unbiased records
of it, and from its 12 most likely tokens, with one class for all others or
without them. All have the same steps, learning rate and tokens, and no labels.
What is compared is the perplexity on chapters that none has seen.
"""

import austen_draft

from haikd import config as config_lib

METHODS = {
    'live': dict(kl=dict(
        loss='kl_divergence', options=dict(temperature=1.0))),
    'sampled': dict(kl=dict(
        loss='kl_divergence', options=dict(temperature=1.0))),
    'top_12': dict(top=dict(
        loss='top_k_kl', options=dict(k=12, temperature=1.0))),
    'top_12_renormalised': dict(top=dict(
        loss='top_k_kl',
        options=dict(k=12, rest='renormalise', temperature=1.0))),
}
_TOP_12 = dict(path='records/austen_top_12', kind='top_k', k=12, bits=16)
_RECORDS = {
    'sampled': dict(path='records/austen_sampled', kind='sampled', exact=16,
                    draws=16, bits=16),
    'top_12': _TOP_12,
    'top_12_renormalised': _TOP_12,
}


def get_config(variant=''):
  config = austen_draft.get_config()
  config.steps = 40
  config.data.train = 'train[:200]'
  config.evaluation.every = 1000
  config.evaluation.final = 'test[:24]'
  config.teacher.records = _RECORDS.get(variant, {})
  return config_lib.variant(config, variant or 'live', METHODS)
