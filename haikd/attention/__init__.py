"""Attention whose maps are never whole: they are worked through in blocks."""

from haikd.attention.attend import attend
from haikd.attention.compare import compare
from haikd.attention.maps import MeanMaps
