"""What Ctrl-C does, in the three ages of a run.

Python's own way, KeyboardInterrupt out of whatever the main thread is doing, is right only while steps are taken.
Before that the thread is inside imports and start-ups of large libraries. Some of them swallow the exception, and the
run goes on as if nothing had been asked; others crash on their way out. There is nothing to save yet either:

- until the run has its folder, the operating system ends the process (`end_silently`, said first by every command);
- while the parts start, a handler says so and leaves at once; the reaper ends every process that was started;
- while steps are taken, KeyboardInterrupt unwinds the run, which closes its files and writes the report.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit code that shells give to a program that Ctrl-C ended."""
GO_ON = "interrupted; with resume=auto the same command goes on from the newest checkpoint"


def end_silently() -> None:
    """Lets Ctrl-C end this process at once, without a word; for as long as nothing is open."""
    if _is_main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_again() -> None:
    """Takes `end_silently` back: Ctrl-C is KeyboardInterrupt from here on."""
    if _is_main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def leaving_at_once(message: str = GO_ON) -> Iterator[None]:
    """Inside the block Ctrl-C ends the process with a message, wherever the main thread is."""

    def leave(number: int, frame: FrameType | None) -> None:
        # No print: the interrupted code may be in the middle of one, and a stream is not to be entered twice.
        os.write(2, f"\n{message}\n".encode())
        os._exit(INTERRUPTED)

    if not _is_main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_process() -> None:
    """Ends this process without Python's own clearing up, in which libraries may wait or crash."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it
            continue
    os._exit(INTERRUPTED)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
