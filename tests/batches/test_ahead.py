"""Items made ahead are the same items, and errors come where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.batches.ahead import Ahead


@given(st.lists(st.integers()), st.integers(1, 4))
def test_the_items_come_in_their_order(items: list[int], depth: int) -> None:
    assert list(Ahead(iter(items), depth)) == items


def test_no_more_than_so_many_are_made_ahead() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    ahead = Ahead(make(), 3)
    ahead.wait_for_first()
    time.sleep(0.3)
    assert len(made) == 4  # three that are ready, and one that waits for room
    assert next(ahead) == 0
    ahead.close()
    ahead.thread.join(5)
    assert not ahead.thread.is_alive(), "nobody wants the rest"


def test_an_error_is_raised_after_the_items_before_it_and_again() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    ahead = Ahead(make(), 2)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            next(ahead)


def test_items_are_made_while_others_are_used() -> None:
    makers: set[int] = set()

    def make() -> Iterator[int]:
        for item in range(3):
            makers.add(threading.get_ident())
            yield item

    assert list(Ahead(make(), 1)) == [0, 1, 2]
    assert makers and threading.get_ident() not in makers
