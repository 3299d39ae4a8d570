"""From several threads at once, beside the caller's signals and forks, and when processes are lost."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import Limits, Sandbox, SandboxError
from sandbox.isolate import descendants

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox("namespaces", workers=2, limits=Limits(wall=10.0, memory_mb=256)) as box:
        yield box


def ended(pids: list[int], seconds: float = 10.0) -> bool:
    """Do all of these processes end in time?"""
    deadline = time.monotonic() + seconds
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        os.close(fd)
        if not ready:
            return False
    return True


def fork_servers(box: Sandbox) -> list[int]:
    pids = [worker.process.pid for worker in box._workers if worker.process is not None]
    return [*pids, *(pid for parent in pids for pid in descendants(parent))]


def test_jobs_of_many_threads_get_their_own_answers(box: Sandbox) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: box.run(f"print(input() * {n})", str(n)), range(40)))
    assert [result.stdout for result in results] == [str(n) * n + "\n" for n in range(40)]


def test_two_workers_run_two_jobs_at_a_time_and_no_more(box: Sandbox) -> None:
    nap = "import time; print(time.monotonic()); time.sleep(0.4); print(time.monotonic())"
    with ThreadPoolExecutor(4) as pool:
        spans = [tuple(map(float, r.stdout.split())) for r in pool.map(lambda _: box.run(nap), range(4))]
    overlaps = [sum(start < moment < end for start, end in spans) for moment, _ in spans]
    assert max(overlaps) == 1  # besides itself


def test_from_a_coroutine(box: Sandbox) -> None:
    async def both() -> list[str]:
        return [r.stdout for r in await asyncio.gather(*(asyncio.to_thread(box.run, f"print({n})") for n in range(3)))]

    assert asyncio.run(both()) == ["0\n", "1\n", "2\n"]


def test_the_callers_signals_are_its_own(box: Sandbox) -> None:
    heard = []
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert box.run("import time; time.sleep(0.3)").status == "ok"
    finally:
        signal.signal(signal.SIGALRM, before[signal.SIGALRM])
    assert heard == [1]
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_a_lost_fork_server_costs_one_more_try(box: Sandbox) -> None:
    for worker in box._workers[:1]:
        assert worker.process is not None
        worker.process.kill()
    assert [box.run(f"print({n})").stdout for n in range(4)] == ["0\n", "1\n", "2\n", "3\n"]


def test_two_lost_fork_servers_are_no_verdict(box: Sandbox) -> None:
    def lose() -> None:
        for _ in range(2):
            busy = [pid for pid in fork_servers(box) if pid not in idle]
            while not busy:
                busy = [pid for pid in fork_servers(box) if pid not in idle]
            for worker in box._workers:
                if worker.process is not None and set(descendants(worker.process.pid)) & set(busy):
                    worker.process.kill()
                    ended(busy)

    idle = set(fork_servers(box))
    thread = threading.Thread(target=lose)
    thread.start()
    result = box.run("import time; time.sleep(8)")
    thread.join()
    assert (result.status, result.exit_code) == ("infra", None), result
    assert box.run("print(1)").stdout == "1\n"


def test_a_fork_of_the_caller_cannot_use_or_end_it(box: Sandbox) -> None:
    pid = os.fork()
    if not pid:
        try:
            box.run("print(1)")
        except SandboxError as error:
            os._exit(0 if "made it" in str(error) else 2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert box.run("print(1)").stdout == "1\n"


def test_close_ends_everything_even_what_runs(box: Sandbox) -> None:
    servers = fork_servers(box)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(box.run("import os; os.fork(); import time; time.sleep(60)"))
    )
    thread.start()
    while len(fork_servers(box)) < len(servers) + 2:  # the program and its child
        pass
    servers = fork_servers(box)
    box.close()
    thread.join(10.0)
    assert [result.status for result in results] == ["infra"]
    assert ended(servers)
    with pytest.raises(SandboxError, match="closed: make a new one"):
        box.run("print(1)")
    with pytest.raises(SandboxError, match="closed"):
        box.session("")
    box.close()


@pytest.mark.slow
@pytest.mark.parametrize(("level", "processes"), [("namespaces", 5), ("landlock", 2)])
def test_nothing_outlives_a_caller_that_is_killed(level: str, processes: int) -> None:
    script = (
        "import sys, threading, warnings, sandbox\nwarnings.simplefilter('ignore')\n"
        f"box = sandbox.Sandbox({level!r}, workers=2)\n"
        "code = 'import os\\nif not os.fork(): os.setsid()\\nwhile True: pass'\n"
        "threading.Thread(target=box.run, args=(code,)).start()\n"
        "print(*[worker.process.pid for worker in box._workers])\n"
        "print(*[worker.scratch for worker in box._workers], flush=True)\nthreading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        servers = list(map(int, caller.stdout.readline().split()))
        folders = caller.stdout.readline().split()
        while len(below := [pid for server in servers for pid in descendants(server)]) < processes:
            pass  # with namespaces also the fork servers themselves, and the init of the program
        caller.kill()
    assert ended([*servers, *below])
    assert len(folders) == (2 if level == "landlock" else 0)
    assert not any(map(os.path.exists, folders))
