"""What programs try at every level. Also a script, for another user: it prints `outcomes(level, file)` as JSON."""

from __future__ import annotations

import json
import os
import sys
import warnings

from sandbox import Limits, Sandbox, SandboxWarning

# What one program is asked at every level, and the answers. {0} is a file of the host.
QUESTIONS = """
import json, os, socket, sys
def fails(f, *a):
    try: f(*a)
    except OSError as e: return True
    return False
pair = socket.socketpair()
pair[0].send(b"x")
open("here", "w").write("x")
os.mkdir("folder")
open(os.environ["TMPDIR"] + "/there", "w").write("x")
import csv, xml.dom.minidom  # not loaded yet
streams = [open(name).read() for name in ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")]
for name in ("/dev/stdout", "/dev/fd/1"):
    with open(name, "w") as file: file.write(" ")
for name, mode in (("/dev/stderr", "w"), ("/dev/fd/2", "a")):
    with open(name, mode) as file: file.write("e")
print(json.dumps({{
    "reads": not fails(open, {0!r}), "writes": not fails(open, {0!r}, "a"), "lists": not fails(os.listdir, "/home"),
    "links": not fails(os.link, {0!r}, "link"), "connects": not fails(socket.socket), "pair": pair[1].recv(1).decode(),
    "datagrams": not fails(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM), "here": sorted(os.listdir(".")),
    "becomes root": not fails(os.setuid, 0), "is root": os.getuid() == 0, "null": not fails(open, "/dev/null", "w"),
    "renices": not fails(os.setpriority, os.PRIO_USER, 0, 1), "random": len(os.urandom(4)),
    "kills": not fails(os.kill, {1}, 0),
    "runs": not fails(os.execv, sys.executable, ["python"]), "cores": os.cpu_count() > 0, "streams": streams,
}}))
"""
ANSWERS = {
    "reads": False, "writes": False, "lists": False, "links": False, "connects": False, "pair": "x", "datagrams": False,
    "here": ["folder", "here", "main.py"], "becomes root": False, "is root": False, "null": True, "renices": False,
    "random": 4, "kills": False, "runs": False, "cores": True, "streams": ["in\n"] * 3,
}  # fmt: skip


def outcomes(level: str, file: str) -> list[object]:
    """What a level makes of the questions, a fork bomb, a family too large for its memory, a daemon, the next job."""
    bomb = "import os\nwhile True: os.fork()"
    family = "import os, time\nos.fork(); os.fork()\nx = bytearray(os.urandom(1)) * (150 << 20); time.sleep(20)"
    daemon = (
        "import os\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n        while True: pass\nprint('left')"
    )
    limits = Limits(wall=5.0, memory_mb=256, processes=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SandboxWarning)
        with Sandbox(level, workers=1, limits=limits) as box:
            asked = box.run(QUESTIONS.format(file, os.getpid()), "in\n")
            told = asked.status == "ok" and asked.stdout.startswith("  ") and asked.stderr == "ee"
            answers = json.loads(asked.stdout) if told else asked.stderr
            ends = [box.run(code).status for code in (bomb, family, daemon)]
            after = box.run("import os; print(os.listdir('.'))").stdout
            return [box.level, answers, ends, after]


if __name__ == "__main__":
    print(json.dumps(outcomes(*sys.argv[1:])))
