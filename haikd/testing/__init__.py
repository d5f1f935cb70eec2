"""Tests for whoever extends haikd: the contract of a loss."""

from haikd.testing.contract import check_loss
from haikd.testing.contract import RULES
from haikd.testing.contract import violations
