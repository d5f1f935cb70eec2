"""Attention, and losses on its maps, in blocks: no map is materialised."""

from haikd.attention.attend import attend
from haikd.attention.compare import compare
from haikd.attention.maps import MeanMaps
