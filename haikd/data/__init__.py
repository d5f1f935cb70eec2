"""Data: data sets by name, augmentation, and the pipeline to batches."""

from haikd.data import archives
from haikd.data import datasets
from haikd.data import synthetic
from haikd.data.arrays import Arrays
from haikd.data.arrays import from_arrays
from haikd.data.description import describe
from haikd.data.image import augmentations
from haikd.data.image import image_folder
from haikd.data.image import resize
from haikd.data.image.augment import register_augmentation
from haikd.data.pipeline import build_data
from haikd.data.pipeline import Data
from haikd.data.source import Source
from haikd.data.source import TextInfo
from haikd.data.spec import Column
from haikd.data.spec import Spec
from haikd.data.tables import table
from haikd.data.text import chat
from haikd.data.text import completions
from haikd.data.text import documents
from haikd.data.text import labelled_sentences
from haikd.data.text import masked_text
from haikd.data.text import sentences
from haikd.data.text import token_files
from haikd.data.text import triples
from haikd.data.text.tokens import next_token
