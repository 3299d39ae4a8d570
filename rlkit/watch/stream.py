"""Standard output whose reader may leave: `rlkit run ... | head` must not end a night's run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from select import POLLERR, POLLHUP, poll
from typing import TextIO


class Lasting:
    """A text stream that goes on when nobody reads it any more; then what is written is lost, and nothing else.

    The numbers of a run are in metrics.jsonl, so no failure of its console is worth the run.
    """

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    @property
    def encoding(self) -> str:
        """The encoding in which the text is written."""
        return self._inner.encoding or "utf-8"

    def isatty(self) -> bool:
        """Says whether it is a terminal."""
        return self._inner.isatty()

    def fileno(self) -> int:
        """Returns the descriptor; raises OSError where there is none."""
        return self._inner.fileno()

    def write(self, text: str) -> int:
        """Writes a text, or lets it go; returns its length in both cases."""
        with outlived(self._inner):
            self._inner.write(text)
        return len(text)

    def flush(self) -> None:
        """Sends on what was written, or lets it go."""
        with outlived(self._inner):
            self._inner.flush()


@contextmanager
def outlived(stream: TextIO) -> Iterator[None]:
    """Goes on after an error of writing to a stream: its reader has left, its terminal or its disk is no more.

    The descriptor is turned to /dev/null then, because libraries print there too and Python itself flushes it at the
    end. Standard output and standard error are often the same pipe (`2>&1 |`), so each that has no reader is turned.
    """
    try:
        yield
    except OSError:
        broken = [number for number in (1, 2) if _has_no_reader(number)]
        with suppress(OSError):
            broken.append(stream.fileno())
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in broken:
            os.dup2(nowhere, number)
        os.close(nowhere)


def _has_no_reader(descriptor: int) -> bool:
    waiting = poll()
    waiting.register(descriptor, 0)
    return any(event & (POLLERR | POLLHUP) for _, event in waiting.poll(0))
