"""Errors that are messages to the user; every other exception is a bug and keeps its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can mend: the message names the key or file, its value, and the fix.

    A command prints it as one paragraph. A plain ValueError, from a library or from a mistake of ours, is not caught.
    In `rewards`, which does not know rlkit, the same is a RewardError.
    """


class PartDiedError(RuntimeError):
    """A process that a part runs in has ended: killed from outside, for want of memory, or by a crash in C code."""


class DivergedError(FloatingPointError):
    """A run that has left the numbers, and was stopped while its weights are still good."""
