"""Progress as a callback: whoever does the work opens a bar, whoever starts the work says where it is shown."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from rlkit.watch.console import Bar

Progress = Callable[[str, int, str], AbstractContextManager[Bar]]
"""Takes a label, a total and a unit ("sampling", 256, "rollouts"); `Console.bar` is one."""


class _Nothing:
    """A bar that nobody sees."""

    def advance(self, n: int = 1) -> None:
        pass

    def set(self, done: int) -> None:
        pass


def silent(label: str, total: int, unit: str) -> AbstractContextManager[Bar]:
    """Shows no progress."""
    return nullcontext(_Nothing())
