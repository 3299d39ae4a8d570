"""What is said of an exception in a user's reward: what was raised, in which file and line, and on what data."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any

MAX_TEXT = 300
"""Characters of an exception's own text; `float(completion)` puts the whole completion there."""
MAX_VALUE = 40
"""Characters of an argument that are shown."""
MISREAD = (TypeError, AttributeError, LookupError, ValueError)
"""What a function raises when its data are not what it takes them for, as in `"7"["content"]`."""
_CALLERS = tuple(str(Path(__file__).with_name(name)) for name in ("function.py", "registry.py", "own_files.py"))
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def described(error: BaseException) -> str:
    """The kind and text of an exception and the user's line that it comes from: `KeyError: 'x' at mine.py:12`."""
    place = _place(error)
    return f"{type(error).__name__}: {_text(error)}{f' at {place}' if place else ''}"


def given(arguments: Mapping[str, Any]) -> str:
    """What each argument is, in words: `answer is text '7'`."""
    return ", ".join(f"{name} is {_shown(value)}" for name, value in arguments.items())


def _text(error: BaseException) -> str:
    try:
        text = str(error.msg) if isinstance(error, SyntaxError) else str(error)
    except Exception:  # of an exception that cannot even say what it is
        text = "(its text cannot be had)"
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


def _place(error: BaseException) -> str:
    """Names the user's line rather than one inside Python or a library that it calls; "" if no line is known.

    A traceback runs from the caller to where the exception arose. Its first frames are those that call the reward, its
    last ones may lie in `json` or `re`. The line in question is the last one in a file of the user.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in _CALLERS and not frame.filename.startswith("<frozen ")
    ]
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    # A reward of an installed package lies in a library itself: then its own file is that of the first frame.
    last = own or [frame for frame in frames if frame.filename == frames[0].filename]
    return f"{last[-1].filename}:{last[-1].lineno}" if last else ""


def _shown(value: Any) -> str:
    match value:
        case str():
            return f"text {_cut(value)}"
        case Mapping():
            return f"a table of {', '.join(map(str, value))[:MAX_VALUE] or 'nothing'}"
        case list() | tuple():
            return f"a list of {len(value)}{f', the first {_shown(value[0])}' if value else ''}"
    return f"{type(value).__name__} {_cut(value)}"


def _cut(value: object) -> str:
    short = Repr()  # it also survives objects that cannot be shown
    short.maxstring = short.maxother = MAX_VALUE
    return short.repr(value)
