"""What belongs to one event loop, such as connections and locks."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One value per event loop, made on first use: a connection cannot be used on another loop than its own."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self._values: dict[asyncio.AbstractEventLoop, T] = {}

    def get(self) -> T:
        """Return the running loop's value; those of closed loops are let go."""
        loop = asyncio.get_running_loop()
        if loop not in self._values:
            for closed in [one for one in list(self._values) if one.is_closed()]:
                self._values.pop(closed, None)
            self._values[loop] = self._build()
        return self._values[loop]
