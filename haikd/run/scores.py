"""The results of a job: what its networks score on the last split."""

from typing import Any, Optional

import jax

from haikd.core import base
from haikd.engine import evaluate as evaluate_lib
from haikd.network import network as network_lib
from haikd.processes import watchdog
from haikd.run import kept_scores
from haikd.run import programs
from haikd.run import results as results_lib
from haikd.run import teachers
from haikd.run import trainees
from haikd.run import training
from haikd.run import writer
from haikd.storage import paths


def of_teacher(student: trainees.Trainee, trained: Optional[training.Trained],
               teacher: Optional[teachers.Teacher]) -> results_lib.Results:
  """Returns the row of the teacher, compared with itself; {} without one.

  Args:
    student: that it teaches.
    trained: the teacher, or None.
    teacher: likewise, frozen.
  """
  if trained is None or teacher is None:
    return {}
  program = student.program
  with programs.of('teacher'):
    step = kept_scores.step_of(
        program, teacher.identity,
        student.data.evaluation_spec(student.config.evaluation.final))
  row = _row('teacher', student, step or program.teacher_eval_step, trained,
             teacher.frozen, None)
  if step:
    step.keep()
    if step.reused and jax.process_index() == 0:
      print(f"the teacher's scores are those of an earlier run, in {step.path}",
            flush=True)
  return dict(teacher=row)


def of_student(student: trainees.Trainee, trained: training.Trained,
               teacher: Optional[teachers.Teacher]) -> dict[str, Any]:
  """Returns the row of a student, which is compared with the teacher.

  Args:
    student: as it is to be evaluated.
    trained: its network.
    teacher: of the job, or None.
  """
  return _row(student.title, student, student.program.eval_step, trained,
              trained.network, teacher.frozen if teacher else None)


def publish(results: results_lib.Results, workdir: paths.Path, split: str,
            name: str) -> None:
  """Writes and prints results, on the first process.

  Args:
    results: of all networks.
    workdir: of the job.
    split: that they were evaluated on.
    name: of the file.
  """
  if jax.process_index() == 0:
    writer.write_results(workdir, results, name)
    writer.print_table(results, split=split)


def _row(title, student, eval_step, trained, network: base.Variables, frozen):
  split = student.config.evaluation.final
  with watchdog.during(None, f'split {split}'), programs.of(title):
    values = evaluate_lib.evaluate(
        eval_step, network, frozen, student.data.evaluation(split),
        student.program.mesh, student.program.own_metrics)
  parameters = network_lib.count_parameters(trained.network.params)
  return dict(parameters=parameters, **values, seconds=trained.seconds)
