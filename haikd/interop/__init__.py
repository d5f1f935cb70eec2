"""Reads and writes networks in the formats of other libraries."""

from haikd.interop.exporting import export
from haikd.interop.loading import check
from haikd.interop.loading import load
from haikd.interop.originals import Original
from haikd.interop.pretrained_source import describe
from haikd.interop.pretrained_source import has_family
from haikd.interop.pretrained_source import is_pretrained
from haikd.interop.pretrained_source import Pretrained
from haikd.interop.pretrained_source import with_prefix
from haikd.interop.reduction import of_blocks
from haikd.interop.tokenizer_files import TokenizerSource
