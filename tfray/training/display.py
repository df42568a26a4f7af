"""What people see of a run while it goes on, all of it made from the log: lines, TensorBoard, curves."""

from __future__ import annotations

import logging
import time

from tfray import storage
from tfray.report.curves import draw_curves
from tfray.training.board import Board
from tfray.training.log import LogReader, describe

logger = logging.getLogger(__name__)

CURVES = "curves.png"
SHOWN = ("start", "train", "valid", "stop")
DRAW_SECONDS = 60.0
"""The least time between two pictures: drawing takes a core about a second."""


class Display:
    """Shows a run on the machine of its driver; the workers may be elsewhere.

    display = Display(job.out)
    while training: display.update()
    display.draw()
    """

    def __init__(self, out: str) -> None:
        self.out, self.reader = out, LogReader(out)
        self.events = self.reader.new_events()  # of earlier runs
        self.board = Board(out, self.events)
        self.drawn = -DRAW_SECONDS
        self.is_drawn = True

    def update(self) -> None:
        """Show what came since the last call."""
        events = self.reader.new_events()
        for event in events:
            if event["event"] in SHOWN:
                logger.info(describe(event))
            self.board.add(event)
        self.events += events
        if any(event["event"] == "valid" for event in events):
            self.is_drawn = False
        if not self.is_drawn and time.monotonic() - self.drawn >= DRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Bring the picture and TensorBoard's files up to date."""
        self.board.flush()
        picture = draw_curves(self.events)
        if picture is not None:
            storage.publish_bytes(storage.join(self.out, CURVES), picture)
        self.drawn, self.is_drawn = time.monotonic(), True
