"""Alignment: which layers form a pair, and how a pair comes to one shape."""

from haikd.align.layers import pair_layers
from haikd.align.pooling import avg_pool_array_to_target_shape
from haikd.align.pooling import PaddingMode
from haikd.align.projection import project
from haikd.align.review import knowledge_review
from haikd.align.shapes import none
from haikd.align.shapes import pool
