"""How the driver has the workers end: a key in Ray's own store, at which they look now and then.

An actor that they wait for would be told at once, but be a process more, which Ray wakes a hundred times a second.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from ray.experimental import internal_kv

SPACE = "tfray"
LOOK_SECONDS = 1.0


class Bell(NamedTuple):
    """Known to the driver and its workers, wherever they are."""

    token: str
    """Of this driver alone."""

    @property
    def key(self) -> str:
        return f"bell-{self.token}"

    def ring(self) -> None:
        """Have the workers save and end."""
        internal_kv._internal_kv_put(self.key, b"rung", namespace=SPACE)

    def wait(self) -> None:
        """Return when the workers are to end."""
        while internal_kv._internal_kv_get(self.key, namespace=SPACE) is None:
            time.sleep(LOOK_SECONDS)

    def take_away(self) -> None:
        """Leave nothing in the store."""
        internal_kv._internal_kv_del(self.key, namespace=SPACE)
