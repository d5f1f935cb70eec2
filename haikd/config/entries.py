"""The entries of config fields that hold several of one kind."""

from typing import Any

import ml_collections
from ml_collections import config_dict

from haikd.config import networks
from haikd.config import rules


def term(**fields: Any) -> ml_collections.ConfigDict:
  """Returns one entry of `config.losses`, with the defaults filled in.

  Args:
    **fields: the fields that differ from their defaults, which are below.

  Returns:
    A ConfigDict with every field.
  """
  return ml_collections.ConfigDict(
      dict(
          # Name of a registered loss; required.
          loss=fields.pop('loss', ''),
          # Weight of the term: a number, or a schedule such as
          # dict(kind='linear', start=0., end=1., steps=1000); see temperature.
          weight=fields.pop('weight', 1.0),
          # Layers to compare, in the forms of `haikd.align.pair_layers`; None
          # for all layers of the student.
          layers=config_dict.FieldReference(
              fields.pop('layers', None), field_type=rules.ANY),
          # Name of a registered aligner; auto for pool, or for none where the
          # loss takes any width.
          align=fields.pop('align', 'auto'),
          # Keyword options of the aligner.
          align_options=fields.pop('align_options', {}),
          # Keyword options of the loss, each a value or a schedule.
          options=fields.pop('options', {}),
          **fields))


def assistant(**fields: Any) -> ml_collections.ConfigDict:
  """Returns one entry of `config.assistants`, with the defaults filled in.

  Args:
    **fields: the fields that differ from their defaults: those of a network, as
      `config.student` has them; `steps`, its training steps, 1000 by default;
      and `optimizer`, a dict of fields that differ from `config.optimizer`'s
      defaults.

  Returns:
    A ConfigDict with every field.
  """
  entry = networks.network()
  entry.steps, entry.optimizer = 1000, networks.optimizer()
  for name, value in fields.items():
    if name == 'optimizer':
      entry.optimizer.update(value)
    else:
      entry[name] = value
  return entry


def component(value: Any) -> ml_collections.ConfigDict:
  """Returns one entry of `config.data.mixture`, with the defaults filled in.

  Args:
    value: a weight, or a dict with the fields that differ from their defaults,
      which are below.

  Returns:
    A ConfigDict with every field.
  """
  fields = {'weight': value} if rules.is_weight(value) else dict(value)
  return ml_collections.ConfigDict(
      dict(
          # Share of the examples of a batch, relative to the other weights: a
          # number, or a schedule such as
          # dict(kind='linear', start=0., end=1., steps=1000).
          weight=fields.pop('weight', 1.0),
          # Name of the data set; '' for that of config.data.
          name=fields.pop('name', ''),
          # Keyword options of the data set, beside those of config.data that it
          # takes.
          options=fields.pop('options', {}),
          # Folder of its raw files; None for the folder of its name in that of
          # config.data.
          source_dir=config_dict.FieldReference(
              fields.pop('source_dir', None), field_type=str),
          **fields))


def records(**fields: Any) -> ml_collections.ConfigDict:
  """Returns `config.teacher.records`, with the defaults filled in.

  Args:
    **fields: the fields that differ from their defaults, which are below.

  Returns:
    A ConfigDict with every field.
  """
  return ml_collections.ConfigDict(
      dict(
          # Folder of the records, which --mode=teach writes; required.
          path=fields.pop('path', ''),
          # What is kept of a prediction: sampled, top_k or hidden.
          kind=fields.pop('kind', 'sampled'),
          # Largest probabilities that are kept, of kind sampled.
          exact=fields.pop('exact', 16),
          # Draws that stand for all other classes, of kind sampled.
          draws=fields.pop('draws', 32),
          # Largest log-probabilities that are kept, of kind top_k.
          k=fields.pop('k', 50),
          # Bits of what is kept, 8 or 16, of kinds sampled and top_k.
          bits=fields.pop('bits', 8),
          # Temperature of the predictions, that of the loss, of kinds sampled
          # and top_k.
          temperature=fields.pop('temperature', 1.0),
          # How often is drawn anew, an epoch after the other, of kind sampled.
          copies=fields.pop('copies', 1),
          **fields))
