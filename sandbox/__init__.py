"""Runs programs that nobody has read, and says how they ended. It needs Linux and the standard library only."""

from __future__ import annotations

from sandbox import judge
from sandbox.box import Sandbox
from sandbox.result import ExecResult, JobEnded, Limits, SandboxError, SandboxWarning
from sandbox.session import Session

__all__ = ["ExecResult", "JobEnded", "Limits", "Sandbox", "SandboxError", "SandboxWarning", "Session", "judge"]
