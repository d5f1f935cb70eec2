"""Attention, and losses on its maps; large maps are never materialised."""

from haikd.attention.attend import attend
from haikd.attention.attend import attend_and_tap
from haikd.attention.compare import compare
from haikd.attention.maps import MeanMaps
