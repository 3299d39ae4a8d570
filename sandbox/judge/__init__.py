"""Verdicts on programs, made outside the sandbox: what a program should answer never enters it.

`stdio` compares printed text, `calls` compares returned values, `asserts` runs a benchmark's tests. The candidate gets
inputs and gives data (`sandbox.wire`); it is equal to what is expected or not, whatever else the candidate did.

What is not covered: arguments that a function changes which also returns something; returned objects of its own
classes; and a program that recognises the inputs of a known test set.
"""

from __future__ import annotations

from sandbox.judge.asserts import asserts
from sandbox.judge.cases import TestsError, Verdict, calls, stdio
from sandbox.judge.equality import close, same_line

__all__ = ["TestsError", "Verdict", "asserts", "calls", "close", "same_line", "stdio"]
