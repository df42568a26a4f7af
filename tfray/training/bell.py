"""How the driver has the workers end: an actor that they wait for, in place of asking again and again."""

from __future__ import annotations

import asyncio


class Bell:
    """Lives as long as the driver."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()

    async def ring(self) -> None:
        """Have the workers save and end."""
        self.rung.set()

    async def wait(self) -> None:
        """Return when the workers are to end."""
        await self.rung.wait()
