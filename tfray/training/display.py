"""What people see of a run while it goes on, all of it made from the log: lines, TensorBoard, curves."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from tfray import storage
from tfray.errors import StorageFailure
from tfray.report.curves import draw_curves
from tfray.training.log import LogReader, describe
from tfray.training.tensorboard import FOLDER, TensorBoard

logger = logging.getLogger(__name__)

CURVES = "curves.png"
SHOWN_FILES = f"the lines here, {CURVES} or {FOLDER}/"
SHOWN = ("start", "train", "valid", "stop", "warning")
DRAW_SECONDS = 60.0
"""The least time between two pictures: drawing takes a core about a second."""


class Display:
    """Shows a run on the machine of its driver; the workers may be elsewhere.

    What cannot be read or written (a full disk) is said once and harms no training; it is tried again later.

    display = Display(job.out)
    while training: display.update()
    display.draw()
    """

    def __init__(self, out: str) -> None:
        self.out, self.reader = out, LogReader(out)
        self.events: list[dict] = []
        self.board: TensorBoard | None = None
        self.drawn = -DRAW_SECONDS
        self.is_drawn, self.is_warned = True, False
        with self.unharmed():
            self.events = self.reader.new_events()  # of earlier runs
            self.board = TensorBoard(out, self.events)

    def update(self) -> None:
        """Show what came since the last call."""
        events: list[dict] = []
        with self.unharmed():
            events = self.reader.new_events()
        for event in events:
            if event["event"] in SHOWN:
                logger.info(describe(event))
        self.events += events
        self.write_board(lambda board: [board.add(event) for event in events])
        if any(event["event"] == "valid" for event in events):
            self.is_drawn = False
        if not self.is_drawn and time.monotonic() - self.drawn >= DRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Bring the picture and TensorBoard's files up to date."""
        self.drawn, self.is_drawn = time.monotonic(), True
        with self.unharmed():
            self.board = self.board or TensorBoard(self.out, self.events)
        self.write_board(TensorBoard.flush)
        with self.unharmed():
            picture = draw_curves(self.events)
            if picture is not None:
                storage.publish_bytes(storage.join(self.out, CURVES), picture)

    def write_board(self, write: Callable[[TensorBoard], object]) -> None:
        """Write to TensorBoard's files; where that breaks off, they are made anew at the next drawing."""
        board, self.board = self.board, None
        if board is not None:
            with self.unharmed():
                write(board)
                self.board = board

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """Go on after the block, whatever came of reading or writing in it."""
        try:
            yield
        except (*storage.READ_ERRORS, StorageFailure) as error:
            if not self.is_warned:
                said = "%s cannot be kept up to date in %r, on which training does not depend: %s"
                logger.warning(said, SHOWN_FILES, self.out, error)
            self.is_warned = True
