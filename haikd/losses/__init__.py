"""Losses: small pure functions on aligned arrays, one file per family."""

from haikd.losses.register import get_loss
from haikd.losses.register import loss_names
from haikd.losses.register import register_loss
