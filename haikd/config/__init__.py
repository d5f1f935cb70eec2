"""The config: its fields, its rules, and the file that it comes from."""

from haikd.config.balancing import balance
from haikd.config.balancing import BALANCES
from haikd.config.entries import assistant
from haikd.config.entries import component
from haikd.config.entries import records
from haikd.config.entries import term
from haikd.config.fields import base
from haikd.config.fields import Config
from haikd.config.fields import ConfigDict
from haikd.config.fields import OPEN_FIELDS
from haikd.config.fields import OPTIONAL_FIELDS
from haikd.config.fields import validate
from haikd.config.networks import has_weights
from haikd.config.networks import network
from haikd.config.networks import optimizer
from haikd.config.options import plain
from haikd.config.recorded import options_of as record_options
from haikd.config.rules import NONFINITE
from haikd.config.stages import joined
from haikd.config.stages import Stage
from haikd.config.stages import stages_of
from haikd.config.stages import without as without_stages
from haikd.config.variants import variant
from haikd.config.watching import profiled
