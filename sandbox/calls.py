"""What runs inside the sandbox when a judge calls functions: run the code, then answer one message after another.

Standard library only, and small: every fork of the fork server holds it. It decides nothing. A candidate that patches
it, or writes to its pipe, can only change what value it returns.

Requests are `(operation, ...)` and answers are tuples too, both in the form of `sandbox.wire`:

    ("call", function, class or None, args, kwargs)     call a function, or a method of a new instance
    ("eval", source)                                    an expression, for arguments that are no plain data
    ("through", builtin, operation, ...)                what a builtin function, such as list, makes of a value
    ("exec", source)                                    statements that build such arguments
    ("test", source, entry point, imports, names)       in a tester: run test source; the function is a proxy
      <- ("value", value) | ("raised", type, text) | ("unsupported", text)
      <- ("remote", function, args, kwargs)             from a running test: the next message is what it returned
      <- ("untestable", text)                           from a running test: it passes on what is no plain data
"""

from __future__ import annotations

import builtins
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from sandbox import wire

NAME = "solution"
"""Not `__main__`: as when a judge imports the file, code under `if __name__ == "__main__"` is not asked for."""

Read = Callable[[], bytes | None]
Write = Callable[[bytes], None]


class CandidateError(Exception):
    """In a tester: the candidate raised an exception that is no builtin one."""


class Untestable(BaseException):
    """In a tester: the test calls the candidate with something that cannot cross. Not for a test's own `except`."""


def serve(code: str, read: Read, write: Write) -> None:
    """Run `code` as a module, then answer every message from `read` with one `write`, until it returns None.

    An exception of the code itself, and SystemExit at any time, end the process like any Python program.
    """
    module = types.ModuleType(NAME)
    sys.modules[NAME] = sys.modules["__main__"] = module  # pickle, dataclasses and multiprocessing look it up there
    exec(compile(code, f"<{NAME}>", "exec", dont_inherit=True), vars(module))
    while (message := read()) is not None:
        operation, *operands = wire.loads(message)
        try:
            answer = ("value", _OPERATIONS[operation](vars(module), read, write, *operands))
        except Untestable as error:
            answer = ("untestable", str(error))
        except Exception as error:
            answer = ("raised", type(error).__name__, str(error)[:1000])
        try:
            reply = wire.dumps(answer)
        except wire.WireError as error:
            reply = wire.dumps(("unsupported", str(error)))
        write(reply)


def _call(
    names: dict[str, Any], read: Read, write: Write, function: str, owner: str | None, args: Any, kwargs: Any
) -> Any:
    called = _look_up(names, function) if owner is None else getattr(_look_up(names, owner)(), function)
    return called(*args, **kwargs)


def _through(names: dict[str, Any], read: Read, write: Write, function: str, operation: str, *operands: Any) -> Any:
    return vars(builtins)[function](_OPERATIONS[operation](names, read, write, *operands))


def _eval(names: dict[str, Any], read: Read, write: Write, source: str) -> Any:
    return eval(source, names)


def _exec(names: dict[str, Any], read: Read, write: Write, source: str) -> None:
    exec(compile(source, "<test>", "exec", dont_inherit=True), names)


def _test(
    names: dict[str, Any],
    read: Read,
    write: Write,
    source: str,
    entry_point: str,
    imports: list[str],
    remotes: list[str],
) -> None:
    def remote(name: str) -> Callable[..., Any]:
        def candidate(*args: Any, **kwargs: Any) -> Any:
            try:
                request = wire.dumps(("remote", name, args, kwargs))
            except wire.WireError as error:
                raise Untestable(str(error)) from None
            write(request)
            reply = read()
            if reply is None:
                raise SystemExit(1)
            kind, *answer = wire.loads(reply)
            if kind == "value":
                return answer[0]
            raise _builtin_exception(*answer)

        return candidate

    names.update({name: importlib.import_module(name) for name in imports})
    names.update({name: remote(name) for name in remotes})
    names[entry_point] = names["candidate"] = remote(entry_point)
    _exec(names, read, write, source)


def _builtin_exception(name: str, text: str) -> Exception:
    kind = vars(builtins).get(name)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return CandidateError(f"{name}: {text}")
    error = kind.__new__(kind)  # some of them cannot be called with one text
    error.args = (text,)
    return error


def _look_up(names: dict[str, Any], name: str) -> Any:
    if name not in names:
        raise NameError(f"name {name!r} is not defined")
    return names[name]


_OPERATIONS = {"call": _call, "through": _through, "eval": _eval, "exec": _exec, "test": _test}
