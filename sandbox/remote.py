"""Level `remote` runs programs in a service that answers `/run_code` as bytedance/SandboxFusion does."""

from __future__ import annotations

import json
import time
from typing import Any

from sandbox.result import ExecResult, Limits, SandboxError, Status

EXTRA_SECONDS = 30.0
"""How long the queue of the service and the network may take, on top of the program's wall limit."""


class Client:
    """Asks one service."""

    def __init__(self, url: str) -> None:
        """Keeps the address, with or without `/run_code`; raises SandboxError unless it is http or https."""
        if not url.startswith(("http://", "https://")):
            raise SandboxError(f"url={url!r}: must start with http:// or https://")
        self.url = url.rstrip("/").removesuffix("/run_code") + "/run_code"

    def run(self, code: str, stdin: str, limits: Limits) -> ExecResult:
        """Runs a program there; what goes wrong on the way, twice in a row, has the status "infra"."""
        from http.client import HTTPException  # here: it takes longer to import than the rest of the package

        started = time.monotonic()
        body = {
            "code": code, "stdin": stdin, "language": "python", "compile_timeout": limits.wall,
            "run_timeout": limits.wall, "memory_limit_MB": limits.memory_mb, "files": {}, "fetch_files": [],
        }  # fmt: skip
        problem = ""
        for _ in range(2):
            try:
                return _result(self._post(body, limits.wall + EXTRA_SECONDS), limits, time.monotonic() - started)
            except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
                problem = f"{self.url}: {type(error).__name__}: {error}"
        return _outcome("infra", None, "", problem, time.monotonic() - started)

    def _post(self, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        import urllib.request

        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return json.load(response)


def _result(answer: dict[str, Any], limits: Limits, wall: float) -> ExecResult:
    """Reads an answer; raises ValueError for one that is about the service and not about the program."""
    run = answer.get("run_result")
    if answer["status"] not in ("Success", "Failed") or run is None:
        raise ValueError(f"status {answer['status']!r}: {answer.get('message')}")
    stdout, stderr = run.get("stdout") or "", run.get("stderr") or ""
    wall = float(run.get("execution_time") or wall)
    if run["status"] == "TimeLimitExceeded":
        return _outcome("timeout", None, stdout, stderr, wall)
    if run["status"] != "Finished":
        raise ValueError(f"run status {run['status']!r}")
    code = int(run["return_code"])
    if len(stdout.encode()) + len(stderr.encode()) > limits.output_kb * 1024:
        return _outcome("output_limit", None, stdout[: limits.output_kb * 1024], "", wall)
    last = stderr.rstrip().rpartition("\n")[2]
    if code == 0:
        status: Status = "ok"
    elif code < 0:
        status = "crashed"
    elif last.startswith("MemoryError"):
        status = "memory"
    else:
        status = "exited"
    return _outcome(status, code, stdout, stderr, wall)


def _outcome(status: Status, code: int | None, stdout: str, stderr: str, wall: float) -> ExecResult:
    by_signal = code is not None and code < 0
    return ExecResult(
        status=status, exit_code=None if by_signal else code, signal=-code if by_signal and code else None,
        stdout=stdout, stderr=stderr, wall=wall, cpu=0.0, memory_mb=0.0,
    )  # fmt: skip
