"""Level `remote` against a real HTTP server that speaks SandboxFusion's `/run_code` and runs the programs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sandbox import Limits, Sandbox, SandboxError, SandboxWarning

LIMITS = Limits(wall=5.0, output_kb=16)
BROKEN: list[Any] = []
"""What the server says next instead of running anything: a status, or a body."""
REQUESTS: list[dict[str, Any]] = []


class Service(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        REQUESTS.append({"path": self.path, **request})
        answer = BROKEN.pop(0) if BROKEN else self.execute(request)
        self.send_response(answer if isinstance(answer, int) else 200)
        self.end_headers()
        self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        command = [sys.executable, "-I", "-S", "-c", request["code"]]
        try:
            done = subprocess.run(
                command, input=request["stdin"], capture_output=True, text=True, timeout=request["run_timeout"]
            )
        except subprocess.TimeoutExpired:
            run = {
                "status": "TimeLimitExceeded",
                "execution_time": None,
                "return_code": None,
                "stdout": "",
                "stderr": "",
            }
        else:
            run = {"status": "Finished", "execution_time": 0.25, "return_code": done.returncode}
            run |= {"stdout": done.stdout, "stderr": done.stderr}
        good = run["status"] == "Finished" and run["return_code"] == 0
        return {"status": "Success" if good else "Failed", "message": "", "compile_result": None, "run_result": run}

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    BROKEN.clear()
    REQUESTS.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    with pytest.warns(SandboxWarning, match="leave this machine"):
        box = Sandbox("remote", url=f"http://127.0.0.1:{server.server_port}/", limits=LIMITS)
    with box:
        yield box
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("code", "status", "exit_code", "signal"),
    [
        ("print(input()[::-1])", "ok", 0, None),
        ("import sys; sys.exit(3)", "exited", 3, None),
        ("import os; os.abort()", "crashed", None, 6),
        ("raise MemoryError", "memory", 1, None),
        ("print('x' * 20000)", "output_limit", None, None),
        ("import time; time.sleep(60)", "timeout", None, None),
    ],
)
def test_programs_end_as_they_do_at_home(
    box: Sandbox, code: str, status: str, exit_code: int | None, signal: int | None
) -> None:
    result = box.run(code, "abc", limits=Limits(wall=0.5 if status == "timeout" else 5.0, output_kb=16))
    assert (result.status, result.exit_code, result.signal) == (status, exit_code, signal), result
    if status == "ok":
        assert (result.stdout, result.wall) == ("cba\n", 0.25)
    request = REQUESTS[0]
    assert (request["path"], request["language"], request["code"]) == ("/run_code", "python", code)
    assert (request["stdin"], request["memory_limit_MB"]) == ("abc", 1024)


def test_trouble_of_the_service_is_no_verdict(box: Sandbox) -> None:
    sandbox_error = {"status": "SandboxError", "message": "no runner", "run_result": None}
    BROKEN[:] = [sandbox_error]
    assert box.run("print(1)").status == "ok"  # the second try
    for broken in (500, b"not json", [], {"status": "Success"}, sandbox_error, {"status": "Failed", "run_result": {}}):
        BROKEN[:] = [broken, broken]
        result = box.run("print(1)")
        assert (result.status, result.exit_code, result.stdout) == ("infra", None, ""), broken
        assert "/run_code: " in result.stderr


def test_an_answer_cut_short_is_trouble_of_the_service(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "send_response", lambda self, code: (
        BaseHTTPRequestHandler.send_response(self, code), self.send_header("Content-Length", "99999")))  # fmt: skip
    assert box.run("print(1)").status == "infra"


def test_requests_are_bounded_and_imports_refused(box: Sandbox) -> None:
    with pytest.raises(SandboxError, match=r"imports=\['numpy'\]: level 'remote'"):
        Sandbox("remote", imports=["numpy"], url=box._remote.url)  # pyright: ignore[reportOptionalMemberAccess]
    assert box._remote is not None
    running, most = 0, 0

    def run(*args: Any) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return "done"

    box._remote.run = run  # pyright: ignore[reportAttributeAccessIssue]
    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(box.run, ["print(1)"] * 6)) == {"done"}
    assert most == 2


def test_there_are_no_sessions_and_nobody_at_home_is_infra(box: Sandbox) -> None:
    with pytest.raises(SandboxError, match="runs whole programs only"):
        box.session("")
    with pytest.warns(SandboxWarning), Sandbox("remote", url="http://127.0.0.1:9/run_code") as nobody:
        assert nobody.run("print(1)").status == "infra"
