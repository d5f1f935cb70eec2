"""The config fields of a network, of its weights and of its optimizer."""

from typing import Any, TypeAlias

import ml_collections
from ml_collections import config_dict

from haikd.config import rules

ConfigDict: TypeAlias = ml_collections.ConfigDict


def free(default: Any = None) -> config_dict.FieldReference:
  """Returns a field that takes values of any type."""
  return config_dict.FieldReference(default, field_type=rules.ANY)


def network() -> ConfigDict:
  """Returns the fields that teacher and student have in common."""
  return ConfigDict(
      dict(
          # Name of a registered model.
          model='mlp',
          # Keyword options of the model.
          options={},
          # Modules to capture, as {kind: glob over module names}; {} for the
          # model's own taps.
          taps={},
          # Compute dtype: float32, bfloat16 or float16.
          precision='float32',
          # Weights to start from: a workdir, npz:FILE, orbax:FOLDER, hf:FOLDER
          # or gguf:FILE; None for a random initialisation.
          init=config_dict.placeholder(str),
          # Which layers of these weights to take, such as (0, 2, 4); None for
          # all, one to one.
          init_layers=free(),
          # How these weights are read.
          init_options=init_options(),
          # How many of its logits are used, the first ones, if its table of
          # tokens is longer than the tokenizer's; None for all.
          used_classes=config_dict.placeholder(int),
          # What blocks recompute in the backward pass: none, gathers (gathered
          # parameters), dots (all but products with parameters) or full; None
          # for gathers where parameters are split.
          remat=config_dict.placeholder(str),
          # Which modules these blocks are: a glob over module names; None for
          # the model's own blocks.
          remat_modules=config_dict.placeholder(str),
          # Parameters to split over the mesh axis tensor, beside a model's own
          # rules, as {glob: axis}: --config.student.placement['mlp/up/w']=-1.
          placement={},
      ))


def has_weights(teacher: ConfigDict) -> bool:
  """Returns whether the fields of a teacher give it weights, or train it."""
  return bool(teacher.init) or teacher.train.steps > 0


def init_options() -> ConfigDict:
  """Returns the fields on how pretrained weights are read."""
  return ConfigDict(
      dict(
          # Fields of config.json that haikd does not know, and globs over
          # tensors that it does not use, to ignore: an assurance that no output
          # depends on them.
          ignore=(),
      ))


def optimizer() -> ConfigDict:
  """Returns the fields of an optimizer."""
  return ConfigDict(
      dict(
          # Optimizer: adamw, sgd, lamb, adafactor or muon.
          name='adamw',
          # Learning rate at its peak.
          learning_rate=1e-3,
          # Learning rate after the warm-up: constant, cosine or linear.
          schedule='cosine',
          # Steps in which the learning rate rises to its peak; 0 for none.
          warmup_steps=0,
          # Learning rate at the last step, as a fraction of the peak; not used
          # by the constant schedule.
          final_fraction=0.0,
          # Weight decay of kernels and embeddings, multiplied by the learning
          # rate; other parameters do not decay.
          weight_decay=0.0,
          # Largest global norm of the gradient, which is scaled down to it;
          # None for no clipping.
          clip_norm=config_dict.placeholder(float),
          # Decay per step of a running mean of the parameters; 0 for no mean.
          ema_decay=0.0,
          # Parameters that stay as they are: globs over modules or parameters,
          # such as ('embed', 'block_*/attn', '*/b'). State is no parameter.
          frozen=(),
          # Factors of the learning rate by part, as {glob as in frozen:
          # factor}; where several match, all of them.
          lr_multipliers={},
          # Further keyword arguments of the optax function.
          options={},
      ))


def view() -> ConfigDict:
  """Returns the fields on how a network sees images, None for the data's."""
  return ConfigDict(
      dict(
          # As data.image_size, which must be set too.
          image_size=config_dict.placeholder(int),
          # As data.crop.
          crop=config_dict.placeholder(float),
          # As data.mean.
          mean=free(),
          # As data.std.
          std=free(),
      ))


def server() -> ConfigDict:
  """Returns the fields on how a teacher on a server is asked."""
  return ConfigDict(
      dict(
          # Name of its model; None for the only one of the server.
          model=config_dict.placeholder(str),
          # Requests that are sent at once.
          requests=16,
          # Seconds that a request may take.
          timeout=600.0,
      ))
