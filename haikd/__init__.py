"""haikd distils large neural networks into small ones in JAX.

The public names below are fixed. `haikd.losses`, `haikd.align` and
`haikd.config` are modules; everything else lives in the room that its import
names.
"""

from haikd import align
from haikd import config
from haikd import losses
from haikd.base import Batch
from haikd.base import LinearLogits
from haikd.base import LossSum
from haikd.base import Pair
from haikd.base import QueryKey
from haikd.capture import capture
from haikd.losses.register import get_loss
from haikd.losses.register import loss_names
from haikd.losses.register import register_loss
from haikd.masking import masked_mean
from haikd.registry import register_aligner
from haikd.registry import register_dataset
from haikd.registry import register_model
from haikd.tapping import tap
from haikd.visibility import AttentionMask

__version__ = '0.1.0'
