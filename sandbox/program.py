"""What the candidate's process does, from compiling to exit, so that its program runs as under `python main.py`.

The process is a fork of the fork server, in which modules are loaded already. It must not end as an interpreter does,
which would also clean up what belongs to the fork server, nor by `os._exit` alone, which would lose buffered output.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from io import TextIOBase
from typing import NoReturn

FILE = "main.py"
HEADER = 4
"""How many bytes the length takes, in big-endian order, that stands before each message of a session."""


def compile_program(code: bytes, note_failure: Callable[[], object]) -> types.CodeType:
    """Compiles the code; if that fails, it prints Python's message, calls `note_failure`, and exits with 1."""
    try:
        return compile(code, os.path.abspath(FILE), "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        # ValueError: null bytes; MemoryError, RecursionError: nested too deeply for the parser.
        note_failure()
        _print_exception(own_frames=1)
        _leave(1)


def run(code: types.CodeType) -> NoReturn:
    """Executes `code` as the module `__main__`, and exits as the interpreter would."""
    _leave(_status_of(lambda: exec(code, _new_main(code.co_filename)), own_frames=2))


def _new_main(file: str) -> dict[str, object]:
    """Makes a new `__main__`, which only sys.modules holds, and returns its names."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = file
    return vars(main)


def answer(code: str, channel: int, serve: Callable[..., None]) -> NoReturn:
    """Lets `serve` run `code` and answer messages on the socket `channel`, and exits."""

    def read() -> bytes | None:
        header = _read_exactly(channel, HEADER)
        return None if header is None else _read_exactly(channel, int.from_bytes(header, "big"))

    def write(message: bytes) -> None:
        left = memoryview(len(message).to_bytes(HEADER, "big") + message)
        while left:
            left = left[os.write(channel, left) :]

    _leave(_status_of(lambda: serve(code, read, write), own_frames=2))


def _read_exactly(fd: int, size: int) -> bytes | None:
    parts, left = [], size
    while left:
        part = os.read(fd, min(left, 1 << 20))
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _status_of(body: Callable[[], object], own_frames: int) -> int:
    try:
        body()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        with suppress(Exception):
            print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        _print_exception(own_frames)
        return 1
    return 0


def _print_exception(own_frames: int) -> None:
    """Calls sys.excepthook with the traceback from the candidate's first frame on."""
    kind, error, trace = sys.exc_info()
    assert kind is not None and error is not None
    for _ in range(own_frames):
        trace = trace and trace.tb_next
    with suppress(BaseException):  # the hook is the candidate's to replace
        sys.excepthook(kind, error.with_traceback(trace), trace)


def _leave(status: int) -> NoReturn:
    """Ends the process as multiprocessing ends a forked child.

    It waits for threads, calls exit functions, and writes out what the streams still hold, but takes no module apart.
    """
    try:
        threading = sys.modules.get("threading")
        if threading is not None:
            threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        status = status or 1
    # What the program left open is written before the streams: it may hold one of them, and print when it goes.
    _end_objects()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except BaseException:
            status = status or 120  # as the interpreter: the output is not complete
    os._exit(status)


def _flush(values: list[object]) -> None:
    """Writes what text files still hold; in a cycle of objects the buffer below one could go before it."""
    for value in values:
        if isinstance(value, TextIOBase) and not value.closed and value.writable():
            value.flush()


def _end_objects() -> None:
    """Lets go of the program's own objects, so that files which it left open are written, and each `__del__` runs."""
    with suppress(BaseException):
        _flush(list(vars(sys.modules["__main__"]).values()))
    for name in ("__main__", "solution"):
        sys.modules.pop(name, None)
    with suppress(BaseException):
        gc.collect()
