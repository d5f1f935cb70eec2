"""Data: builders, augmentation, and the pipeline that makes batches."""

from haikd.data import completions
from haikd.data import datasets
from haikd.data import images
from haikd.data import labelled_sentences
from haikd.data import sentences
from haikd.data import sizes
from haikd.data import synthetic
from haikd.data import text
from haikd.data import token_files
from haikd.data.augment import register_augmentation
from haikd.data.description import describe
from haikd.data.pipeline import build_data
from haikd.data.pipeline import Data
from haikd.data.source import Arrays
from haikd.data.source import Source
from haikd.data.source import Spec
from haikd.data.source import TextInfo
from haikd.data.tokens import next_token
