"""TensorBoard's event files."""

from collections.abc import Mapping
import io
import itertools
import os
import pathlib
import socket
import time
from typing import Any, Optional

from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto import summary_pb2
from tensorboard.summary.writer import record_writer

_VERSION = 'brain.Event:2'  # Of the files, as TensorBoard wants it.
_numbers = itertools.count()  # Of the files of a process.


class Events:
  """TensorBoard's event files; they need no TensorFlow.

  A file is created with its first event: a finished run that is started again
  leaves none. Each row is written at once, by the thread that calls: that of
  TensorBoard's own writer ends with its first error, and tells nobody.

  Args:
    workdir: a local folder.
  """

  def __init__(self, workdir: os.PathLike):
    self._workdir = workdir
    self._file: Optional[io.FileIO] = None
    self._waiting = b''  # What is still to be written.
    self._start: Any = None

  def truncate(self, step: int) -> None:
    """Makes TensorBoard drop the events of later steps."""
    self.close()  # Of a rollback: what follows is in a file of its own.
    self._start = step

  def add(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Adds a row to those that `write` writes."""
    if self._file is None and not self._waiting:
      self._add(0, file_version=_VERSION)
      if self._start is not None:
        # TensorBoard drops the events of earlier files from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(self._start + 1, session_log=start)
    values = [
        summary_pb2.Summary.Value(tag=f'{split}/{name}', simple_value=value)
        for name, value in metrics.items()
    ]
    self._add(step, summary=summary_pb2.Summary(value=values))

  def write(self) -> None:
    """Writes what waits.

    Raises:
      OSError: it cannot be written, and waits for the next call.
    """
    if self._waiting and self._file is None:
      path = pathlib.Path(self._workdir)
      path.mkdir(parents=True, exist_ok=True)
      name = (f'events.out.tfevents.{int(time.time()):010}.'
              f'{socket.gethostname()}.{os.getpid()}.{next(_numbers)}')
      self._file = open(path / name, 'wb', buffering=0)
    while self._waiting:  # A disk that is full takes a part of it.
      assert self._file is not None, 'it is open'
      self._waiting = self._waiting[self._file.write(self._waiting):]

  def _add(self, step, **content):
    event = event_pb2.Event(wall_time=time.time(), step=step, **content)
    record = io.BytesIO()
    record_writer.RecordWriter(record).write(event.SerializeToString())
    self._waiting += record.getvalue()

  def close(self) -> None:
    """Closes the file, if there is one; what waits is dropped."""
    self._waiting = b''
    if self._file is not None:
      self._file.close()
      self._file = None
