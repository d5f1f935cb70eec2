"""The results of a job: a row of metrics for each of its networks."""

from typing import NamedTuple

from haikd.run import workdir

Results = dict[str, dict[str, float]]  # By network, then by metric.


class Row(NamedTuple):
  """The names of a network in the results of a job.

  Attributes:
    name: the key in `Results`.
    title: the title in tables and plots.
    card_title: the title in the model card of an exported student.
  """

  name: str
  title: str
  card_title: str


ROWS = (
    Row('teacher', 'teacher', 'teacher'),
    # With the weights that the student inherits, if any.
    Row('student_start', 'student at start', 'student before training'),
    Row('student_alone', 'student alone', 'student trained alone'),
    Row('student', 'student distilled', '**this model**'),
)

# Where the networks that are trained are saved, below the workdir.
FOLDERS = dict(
    teacher=workdir.TEACHER, student_alone=workdir.BASELINE, student='')
