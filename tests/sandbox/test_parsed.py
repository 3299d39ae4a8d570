"""Reading source while other threads read source too."""

from __future__ import annotations

import ast
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sandbox.judge.parsed import parsed

SOURCE = "\n".join(f"assert f({n}) == [{n}, ({n}, 'a')]" for n in range(300))


def deeper(levels: int, parse: Callable[[str], ast.Module]) -> ast.Module:
    """Parses from so many calls below: CPython begins to count there."""
    return parse("x = 1") if not levels else deeper(levels - 1, parse)


@contextmanager
def another_thread_inside(parse: Callable[[str], ast.Module]) -> Iterator[list[bool]]:
    """Inside the block garbage collection lets a thread parse at the first chance, and waits for it."""
    helper = threading.Thread(target=deeper, args=(40, parse))
    seen: list[bool] = []

    def meanwhile(phase: str, _info: object) -> None:
        if phase == "start" and not seen and threading.current_thread() is threading.main_thread():
            frame = sys._getframe(1)
            if frame.f_code.co_name in ("parse", "parsed"):
                seen.append(True)
                helper.start()
                helper.join(0.3)  # one that waits for us is let go

    before = gc.get_threshold()
    gc.callbacks.append(meanwhile)
    gc.set_threshold(50)
    try:
        yield seen
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(meanwhile)
        if seen:
            helper.join()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="counts for each call there")
def test_python_itself_fails() -> None:
    """If this fails no more, the lock may go."""
    with another_thread_inside(ast.parse) as seen, pytest.raises(SystemError, match="recursion depth mismatch"):
        ast.parse(SOURCE)
    assert seen


def test_a_thread_that_parses_meanwhile_harms_nothing() -> None:
    with another_thread_inside(parsed) as seen:
        tree = parsed(SOURCE)
    assert seen and len(tree.body) == 300


def test_nor_does_one_that_is_not_ours() -> None:
    with another_thread_inside(ast.parse) as seen:
        tree = parsed(SOURCE)
    assert seen and len(tree.body) == 300


def test_what_is_no_python_stays_an_error_of_its_own() -> None:
    with pytest.raises(SyntaxError):
        parsed("def")
    with pytest.raises((SyntaxError, ValueError), match="null bytes"):
        parsed("x\0")
    assert parsed("x = 1").body
