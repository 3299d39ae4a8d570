"""What runs inside the sandbox when a judge calls functions: it runs the code, and then answers message after message.

It uses the standard library only and is small, because every fork of the fork server holds it. It decides nothing: a
candidate that patches it, or writes to its pipe, can only change what value it returns.

A candidate's session gets calls. The session of a tester gets whole tests, in which the candidate's functions are
proxies: what they are called with goes out to the judge, which puts the call to the candidate and sends the answer in.

Requests are `(operation, ...)` and answers are tuples too, both in the form of `sandbox.wire`:

    ("call", function, class or None, args, kwargs)     call a function, or a method of a new instance
    ("eval", function, source)                          evaluate a call of it with arguments that are not plain data
    ("apply", function, args, kwargs)                   call it for a tester, which gets the arguments back if it
                                                        returns None, for it may have changed them
    ("through", builtin, operation, ...)                apply a builtin function, such as list, to a value
    ("exec", source)                                    run statements that build such arguments
    ("test", source, runner, function, imports, names, as script)    in a tester: run a test; the function is a proxy
      <- ("value", value) | ("raised", type, text) | ("unsupported", text)
      <- ("remote", function, args, kwargs)             from a running test: the next message is what it returned, and
                                                        the arguments if they are to be changed
      <- ("untestable", text)                           from a running test: it fails whatever the candidate does
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

from sandbox import wire

NAME = "solution"
"""What the module is called: not `__main__`, so that what a program does when it is run as a script is left out."""
RECURSION_LIMIT = 50_000
"""LiveCodeBench sets it to this, for a function that recurs once for each element of its input is nothing unusual."""
STARS = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "typing",
)  # fmt: skip
"""Modules whose names function problems may use without an import; of two equal names the later one counts."""
MODULES = (*STARS[:-1], "fractions")
"""Modules that they may use by their own names, too, which count more than those."""

CHANGED_BYTES = 1 << 20
"""How long the arguments may be that a test gets back, all together; an answer to it may have twice as many."""

Read = Callable[[], bytes | None]
Write = Callable[[bytes], None]

_assumed: dict[str, Any] = {}


def load_assumed() -> None:
    """Collects what a function may use without an import. The fork server does this once, for all sessions."""
    for name in STARS:
        exec(f"from {name} import *", _assumed)
    _assumed.update({name: importlib.import_module(name) for name in MODULES})
    for name in ("__builtins__", *vars(builtins)):
        _assumed.pop(name, None)


class CandidateError(Exception):
    """Stands in a tester for an exception of the candidate that is not a builtin one."""


class Refused(BaseException):
    """Stops a test, with the answer that the tester gives; the test's own `except Exception` does not catch it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.answer = (kind, text)


def serve(code: str, read: Read, write: Write, answer_bytes: int) -> None:
    """Runs `code` as a module, then answers every message from `read` with one `write`, until it returns None.

    A value that takes more than `answer_bytes` is not sent. An exception of the code itself, and SystemExit at any
    time, end the process like any Python program.
    """
    module = types.ModuleType(NAME)
    sys.modules[NAME] = sys.modules["__main__"] = module  # pickle, dataclasses and multiprocessing look it up there
    # Names that Python looks up last. So the program's own names come first, a `from __future__` may stay on its first
    # line, and an empty program does not have the function `gcd`, for requests look in the module only.
    builtins.__dict__.update(_assumed)
    sys.setrecursionlimit(RECURSION_LIMIT)
    exec(compile(code, f"<{NAME}>", "exec", dont_inherit=True), vars(module))
    while (message := read()) is not None:
        operation, *operands = wire.loads(message, wire.ANSWER_BYTES)
        try:
            answer = ("value", _OPERATIONS[operation](vars(module), read, write, *operands))
        except Refused as refusal:
            answer = refusal.answer
        except Exception as error:
            answer = ("raised", type(error).__name__, str(error)[:1000])
        try:
            reply = wire.dumps(answer, answer_bytes)
        except wire.WireError as error:
            reply = wire.dumps(("unsupported", str(error)))
        write(reply)


def _call(
    names: dict[str, Any], read: Read, write: Write, function: str, owner: str | None, args: Any, kwargs: Any
) -> Any:
    called = _look_up(names, function) if owner is None else getattr(_look_up(names, owner)(), function)
    return called(*args, **kwargs)


def _apply(names: dict[str, Any], read: Read, write: Write, function: str, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Calls a function, and returns its value or, if that is None, also what it made of its arguments.

    Only then, for the test reads what else it returns: one that emptied a list and returned it would be a right sort.
    """
    value = _call(names, read, write, function, None, args, kwargs)
    if value is not None or not any(isinstance(one, list | dict | set | tuple) for one in (*args, *kwargs.values())):
        return (value,)
    try:
        wire.dumps((args, kwargs), CHANGED_BYTES)
    except wire.WireError:  # too long, or it keeps objects there, which a test could only read through the candidate
        return (None,)
    return (None, args, kwargs)


def _changed(old: Any, new: Any) -> Any:
    """Makes a test's own value what the candidate made of its copy, in place as far as the types are the same."""
    if isinstance(old, list) and isinstance(new, list):
        both = [_changed(*pair) for pair in zip(old, new, strict=False)]
        old[:] = [*both, *new[len(both) :]]
    elif isinstance(old, dict) and isinstance(new, dict):
        items = {key: _changed(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(items)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for pair in zip(old, new, strict=True):
            _changed(*pair)
        return old
    else:
        return old if isinstance(old, type(new)) and old == new else new
    return old


def _through(names: dict[str, Any], read: Read, write: Write, function: str, operation: str, *operands: Any) -> Any:
    return vars(builtins)[function](_OPERATIONS[operation](names, read, write, *operands))


def _eval(names: dict[str, Any], read: Read, write: Write, function: str, source: str) -> Any:
    _look_up(names, function)
    return eval(source, names)


def _exec(names: dict[str, Any], read: Read, write: Write, source: str) -> None:
    exec(compile(source, "<test>", "exec", dont_inherit=True), names)


def _test(
    names: dict[str, Any],
    read: Read,
    write: Write,
    source: str,
    runner: str,
    entry_point: str,
    imports: list[str],
    remotes: list[str],
    as_script: bool,
) -> None:
    """Runs test source, and then `runner`, the calls that a test runner makes; returns if nothing fails."""
    proxies = Proxies(read, write)
    names.update({name: importlib.import_module(name) for name in imports})
    names.update({name: proxies.function(name) for name in remotes})
    names[entry_point] = names["candidate"] = proxies.function(entry_point)
    names["__name__"] = "__main__" if as_script else NAME
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a test prints is not the program's output, and has no limit
    try:
        for part in (source, runner):
            try:
                _exec(names, read, write, part)
            except SystemExit as end:  # how scripts end: with nothing or 0 when all is well
                if end.code:
                    raise AssertionError(f"the test exits with {end.code!r}") from None
    except Exception as error:
        proxies.blame(error)
        raise
    finally:
        if proxies.refused is not None:  # also where the test caught it, as unittest catches everything
            raise proxies.refused


class Proxies:
    """The candidate's functions as a test sees them: each passes arguments and results on, as data."""

    def __init__(self, read: Read, write: Write) -> None:
        """Keeps the way to the judge; nothing has been asked yet."""
        self._read, self._write = read, write
        self._has_asked = False
        self._raised: list[Exception] = []
        self.refused: Refused | None = None

    def function(self, name: str) -> Callable[..., Any]:
        """Returns a proxy of the candidate's function of that name."""

        def candidate(*args: Any, **kwargs: Any) -> Any:
            return self._ask(name, args, kwargs)

        candidate.__name__ = candidate.__qualname__ = name
        return candidate

    def blame(self, error: Exception) -> None:
        """Refuses the test if the error is its own: one before its first call, or an import that it cannot make.

        Only these can be told from failures of the candidate. Whatever the test raises after the first answer may come
        of that answer, so it counts against the candidate; so does an ImportError that the candidate itself raised.
        """
        is_import = isinstance(error, ImportError) and not any(error is raised for raised in self._raised)
        if self._has_asked and not is_import:
            return
        if isinstance(error, ModuleNotFoundError) and error.name:
            top = error.name.partition(".")[0]
            text = f"the test needs the module {top!r}, which the sandbox does not have: give imports=[{top!r}]"
        else:
            when = "cannot import what it needs" if is_import else "fails before it calls the candidate"
            text = f"the test {when}: {type(error).__name__}: {str(error)[:500]}"
        self._refuse("untestable", text)

    def _ask(self, name: str, args: Any, kwargs: Any) -> Any:
        try:
            request = wire.dumps(("remote", name, args, kwargs), wire.ANSWER_BYTES)
        except wire.TooLarge as error:
            # The size may be the doing of an answer that the test passes on, which must not excuse the candidate.
            self._refuse("unsupported" if self._has_asked else "untestable", f"arguments of {name!r}: {error}")
        except wire.WireError as error:
            self._refuse("untestable", f"the test calls {name!r} with {error}; only plain data can be passed")
        self._has_asked = True
        self._write(request)
        reply = self._read()
        if reply is None:  # the judge has closed the session
            os._exit(1)
        kind, *answer = wire.loads(reply, wire.ANSWER_BYTES)
        if kind == "value":
            value, *changed = answer
            for old, new in zip((args, kwargs), changed, strict=False):
                _changed(old, new)
            return value
        self._raised.append(_builtin_exception(*answer))
        raise self._raised[-1]

    def _refuse(self, kind: str, text: str) -> NoReturn:
        self.refused = Refused(kind, text)
        raise self.refused


def _builtin_exception(name: str, text: str) -> Exception:
    kind = vars(builtins).get(name)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return CandidateError(f"{name}: {text}")
    error = kind.__new__(kind)  # some of them cannot be called with one text
    error.args = (text,)
    return error


def no_name(name: str) -> str:
    """Returns what Python says of a name that nobody defines."""
    return f"name {name!r} is not defined"


def _look_up(names: dict[str, Any], name: str) -> Any:
    if name not in names:
        raise NameError(no_name(name))
    return names[name]


_OPERATIONS = {"call": _call, "apply": _apply, "through": _through, "eval": _eval, "exec": _exec, "test": _test}
