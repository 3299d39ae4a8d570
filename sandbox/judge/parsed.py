"""Source to a syntax tree, from any thread.

CPython before 3.13 counts how deep it is in a tree in one number for all threads. Where garbage collection lets another
thread run in the middle of `ast.parse`, and that parses too, the first one ends with "SystemError: AST constructor
recursion depth mismatch" (python/cpython#106905), whatever the source is.
"""

from __future__ import annotations

import ast
from threading import Lock

_LOCK = Lock()
TRIES = 5
"""Against threads that are not ours and parse as well."""


def parsed(source: str) -> ast.Module:
    """Parses source as `ast.parse` does, one thread at a time; SyntaxError or ValueError if it is no Python."""
    for left in reversed(range(TRIES)):
        try:
            with _LOCK:
                return ast.parse(source)
        except SystemError:
            if not left:
                raise
    raise AssertionError("unreachable")
