"""What evaluation reports: one file for each kind of network output."""

from haikd.metrics.families import are_comparable
from haikd.metrics.families import family_of
from haikd.metrics.families import finish
from haikd.metrics.families import measure
from haikd.metrics.families import names
from haikd.metrics.table import CURVES
from haikd.metrics.table import is_less_better
from haikd.metrics.table import Score
from haikd.metrics.table import scores
from haikd.metrics.table import shown
