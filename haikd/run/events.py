"""TensorBoard's event files."""

from collections.abc import Mapping
import contextlib
import os
import time
from typing import Any

from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto import summary_pb2
from tensorboard.summary.writer import event_file_writer


class Events:
  """TensorBoard's event files; they need no TensorFlow.

  A file is created with its first event: a finished run that is started again
  leaves none.

  Args:
    workdir: a local folder.
  """

  def __init__(self, workdir: os.PathLike):
    self._workdir = workdir
    self._writer: Any = None
    self._start: Any = None

  def truncate(self, step: int) -> None:
    """Makes TensorBoard drop the events of later steps."""
    self.close()  # Of a rollback: what follows is in a file of its own.
    self._writer, self._start = None, step

  def write(self, step: int, split: str,
            metrics: Mapping[str, float]) -> None:
    """Writes a row, and flushes it.

    Raises:
      OSError: it cannot be written, and is lost; later rows go to a new file.
    """
    values = [
        summary_pb2.Summary.Value(tag=f'{split}/{name}', simple_value=value)
        for name, value in metrics.items()
    ]
    try:
      if self._writer is None:
        self._open()
      self._add(step, summary=summary_pb2.Summary(value=values))
      self._writer.flush()
    except OSError:
      self._abandon()
      raise
    self._start = None  # Whatever comes next goes on from here.

  def _open(self):
    self._writer = event_file_writer.EventFileWriter(os.fspath(self._workdir))
    if self._start is not None:
      # TensorBoard drops the events of earlier files from this step on.
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add(self._start + 1, session_log=start)

  def _add(self, step, **content):
    self._writer.add_event(
        event_pb2.Event(wall_time=time.time(), step=step, **content))

  def _abandon(self):
    """Leaves a file whose thread has ended: it takes no more events."""
    with contextlib.suppress(OSError):  # What has ended the thread.
      self.close()
    self._writer = None

  def close(self) -> None:
    """Closes the file, if there is one."""
    if self._writer is not None:
      self._writer.close()
