"""The log's events as TensorBoard files: OUT/tensorboard/.

They are made anew from the log when training starts, so that nothing is missing that a killed process had not written.
A run that goes on from an older step begins a new file, whose first event tells TensorBoard to drop the points after
that step.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from tfray import storage

# protoc makes the classes when the modules are imported, which type checkers do not see.
Event, SessionLog, Summary = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary  # type: ignore[attr-defined]

FOLDER = "tensorboard"
GROUPS = {"train": "training", "valid": "validation"}
NOT_DRAWN = ("event", "step", "steps", "seconds", "seconds_left", "is_best")


class TensorBoard:
    """Writes a run's events; where OUT is in an object store, flush() puts the files there."""

    def __init__(self, out: str, events: list[dict]) -> None:
        self.place = storage.join(out, FOLDER)
        storage.remove(self.place)
        self.is_remote = storage.is_remote(out)
        self.temporary = tempfile.TemporaryDirectory(prefix="tfray-") if self.is_remote else None
        self.folder = Path(self.temporary.name if self.temporary else storage.absolute(self.place))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files, self.is_empty = 0, True
        # Events know the seconds of training alone: TensorBoard's relative time is then the training's.
        self.zero = time.time() - max((event.get("seconds", 0.0) for event in events), default=0.0)
        self.writer = self.begin(0)
        for event in events:
            self.add(event)
        self.flush()

    def begin(self, step: int) -> EventsWriter:
        """Return a new file for a run from this step on; points of the step itself stay."""
        self.files += 1
        # TensorBoard reads files in the order of their names, whose time has seconds only.
        writer = EventsWriter(str(self.folder / "events"), filename_suffix=f".{self.files:04d}")
        if not self.is_empty:
            writer.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        return writer

    def add(self, event: dict) -> None:
        """Write an event's numbers at its step."""
        if event["event"] == "start" and not self.is_empty:
            self.writer.close()
            self.writer = self.begin(event["step"])
        group = GROUPS.get(event["event"])
        values = [
            Summary.Value(tag=f"{group}/{name}", simple_value=float(value))
            for name, value in event.items()
            if group and name not in NOT_DRAWN and isinstance(value, int | float)
        ]
        if values:
            at = self.zero + event.get("seconds", 0.0)
            self.is_empty = False
            self.writer.write_event(Event(step=event["step"], wall_time=at, summary=Summary(value=values)))

    def flush(self) -> None:
        """Bring what was written to where people look."""
        self.writer.flush()
        for path in sorted(self.folder.iterdir()) if self.is_remote else ():
            storage.publish_bytes(storage.join(self.place, path.name), path.read_bytes())
