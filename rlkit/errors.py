"""Errors that are messages to the user; every other exception is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something that the user can mend: the message names the key or file, its value, and the fix.

    A command prints it as one paragraph. A plain ValueError, from a library or from a mistake of ours, is not caught.
    In `rewards`, which does not know rlkit, the same is a RewardError.
    """


@contextmanager
def named_by(key: str) -> Iterator[None]:
    """Lets a UserError about the folder in model.path name another key, which holds a folder of the same kind."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("model.path", key)) from error


class PartDiedError(RuntimeError):
    """A process that a part runs in has ended: killed from outside, for want of memory, or by a crash in C code."""


class DivergedError(FloatingPointError):
    """A run that has left the numbers, and was stopped while its weights are still good."""
