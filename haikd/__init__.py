"""haikd distils large neural networks into small ones in JAX.

The names below are haikd's public API. `haikd.losses`, `haikd.align`,
`haikd.config`, `haikd.data` and `haikd.testing` are modules; each other name
comes from the module in its import.
"""

import importlib
from typing import Any

from haikd.core import garbage
from haikd.processes import huge_pages

huge_pages.use()  # It may start the process again, so nothing is before it.

with garbage.uncollected():
  from haikd import align
  from haikd import config
  from haikd import losses
  from haikd.core.attention_mask import AttentionMask
  from haikd.core.base import Batch
  from haikd.core.base import LinearLogits
  from haikd.core.base import LossSum
  from haikd.core.base import Pair
  from haikd.core.base import QueryKey
  from haikd.core.masking import masked_mean
  from haikd.core.registry import register_aligner
  from haikd.core.registry import register_dataset
  from haikd.core.registry import register_model
  from haikd.core.tap import tap
  from haikd.core.writers import register_writer
  from haikd.losses.register import get_loss
  from haikd.losses.register import loss_names
  from haikd.losses.register import register_loss
  from haikd.metrics.own import register_metric
  from haikd.network.capture import capture

# setup.cfg reads this: keep it a literal.
__version__ = '0.1.0'

# Imported when they are first used: they bring what reads and writes files.
_LATER = {
    'data': 'haikd.data',
    'testing': 'haikd.testing',
    'train': 'haikd.library',
    'evaluate': 'haikd.library',
    'load': 'haikd.library',
    'save_network': 'haikd.storage.archive',
}


def __getattr__(name: str) -> Any:
  if name not in _LATER:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(_LATER[name])
  return module if _LATER[name] == f'{__name__}.{name}' else getattr(
      module, name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_LATER})
