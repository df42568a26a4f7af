"""Work of the CPU done ahead: the next steps are made while the present one trains."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Goes through an iterator in a thread of its own, at most `depth` items ahead of whoever iterates over it.

    What the iterator raises is raised where its item would come.
    """

    def __init__(self, items: Iterator[Item], depth: int) -> None:
        self.ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
        self.is_closed, self.has_first = False, threading.Event()
        self.thread = threading.Thread(target=self.fill, args=(items,), daemon=True)
        self.thread.start()

    def fill(self, items: Iterator[Item]) -> None:
        """Make items until there are no more, or nobody wants them."""
        error: BaseException = StopIteration()
        try:
            for item in items:
                if not self.put(item, None):
                    return
        except BaseException as raised:
            error = raised
        self.put(None, error)

    def put(self, item: Item | None, error: BaseException | None) -> bool:
        """Wait for room and hand something over; return False where nobody wants it any more."""
        while not self.is_closed:
            try:
                self.ready.put((item, error), timeout=0.1)
                self.has_first.set()
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item, error = self.ready.get()
        if error is not None:
            self.ready.put((None, error))  # whoever asks again finds the same
            raise error
        return item  # type: ignore[return-value]

    def wait_for_first(self) -> None:
        """Return when the first item is there."""
        self.has_first.wait()

    def close(self) -> None:
        """Let the thread end."""
        self.is_closed = True
