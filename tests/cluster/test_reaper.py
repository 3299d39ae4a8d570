from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rlkit.cluster import reaper
from rlkit.cluster.reaper import VARIABLE, marked, reaped

# A driver with a child of its own that ignores SIGTERM and a grandchild in another session.
DRIVER = """
import subprocess, sys, time
from rlkit.cluster.reaper import reaped
with reaped():
    child = "import subprocess, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " \\
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); " \\
            "print('up', flush=True); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", child])
    import os
    print(os.environ["RLKIT_RUN"], flush=True)
    time.sleep(600)
"""


def gone_within(mark: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not marked(mark)


def test_a_killed_driver_takes_everything_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        words = {driver.stdout.readline().strip() for _ in range(2)}
        [mark] = words - {"up"}
        assert len(marked(mark)) >= 2
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert gone_within(mark, 10)


def test_a_block_that_ends_leaves_nothing_and_touches_nobody_else() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with reaped():
        mark = os.environ[VARIABLE]
        inside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert inside.wait(timeout=10) == -signal.SIGKILL
    assert not marked(mark)
    assert VARIABLE not in os.environ
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_it_runs_alone_without_anything_beside_it(tmp_path: Path) -> None:
    """It must not need packages: when the driver is killed, they may be what is broken."""
    alone = shutil.copy(reaper.__file__, tmp_path / "alone.py")
    command = [sys.executable, "-I", "-S", str(alone), str(os.getpid()), "no-such-mark", ""]
    # Nothing holds its input open, so it takes its driver for gone at once, and finds nobody that carries the mark.
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, env={}, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
