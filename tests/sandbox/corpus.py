"""Runs the programs of attacks/ and legitimate/ and says, as JSON, what each was worth and what it left on the host.

A script of the standard library alone, so that the tests can run it as another user: `corpus.py FOLDER LEVEL IMPORTS`.
A file holds programs of one theme: lines of `# key: value`, then before each program `# ---- name | what it does`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ARGUMENT = 3
SLACK_SECONDS = 4.0
"""After the wall limit, for the processes to be ended on a busy machine."""
ENVIRONMENT = Path(sys.prefix).parts[2] if Path(sys.prefix).is_relative_to("/tmp") else "main.py"
"""What a job sees in its /tmp if numpy lies below the host's."""
PROBE = (
    f"ENVIRONMENT = {ENVIRONMENT!r}"
    + """
import builtins, ctypes, glob, json, os
assert builtins.print and json.loads("1") == 1 and os.getcwd(), "patched"
for folder in (".", os.environ["TMPDIR"], "/dev/shm"):
    try:
        names = set(os.listdir(folder))
    except OSError:  # not there, or not for a job
        continue
    assert names <= {"main.py", ENVIRONMENT}, names
assert ctypes.CDLL(None).shmget(0x5EC, 1, 0) == -1 and ctypes.CDLL(None).msgget(0x5EC, 0) == -1, "ipc"
open("here", "w").close(), open(os.environ["TMPDIR"] + "/here", "w").close()
print("clean", len(glob.glob("/proc/[0-9]*")) < 4 or os.stat("/proc/1").st_uid != os.getuid())
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    theme: str
    name: str
    tries: str
    settings: dict[str, str]
    code: str


def programs(folder: Path) -> Iterator[Program]:
    for path in sorted(folder.glob("*.txt")):
        head, *parts = re.split(r"^# ---- ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        settings = dict(re.findall(r"^# (modes|task|wall|needs): (.*)$", head, flags=re.MULTILINE))
        for part in parts:
            title, _, code = part.partition("\n")
            name, _, tries = title.partition(" | ")
            yield Program(theme=path.stem, name=name, tries=tries, settings=settings, code=code)


def same_port() -> list[socket.socket]:
    """A TCP and a UDP socket on one free port."""
    while True:
        tcp, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp.bind(("127.0.0.1", 0))
        try:
            udp.bind(tcp.getsockname())
            return [tcp, udp]
        except OSError:  # somebody has the other one
            tcp.close()
            udp.close()


class Host:
    """What an attack may read, change or reach, and must not."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rlkit-host-"))
        self.folder.chmod(0o755)
        self.mark = f"rlkit-{secrets.token_hex(8)}"
        self.secret = f"rlkit-secret-{secrets.token_hex(16)}"
        os.environ["RLKIT_SECRET"] = self.secret
        self.canary, self.outside, self.file = (self.folder / name for name in ("canary", "outside", "secret"))
        self.outside.mkdir()
        self.outside.chmod(0o777)
        self.canary.write_text("intact")
        self.canary.chmod(0o666)
        self.file.write_text(self.secret)
        self.file.chmod(0o644)
        self.sockets = same_port()
        self.port = self.sockets[0].getsockname()[1]
        for name, kind in (("\0" + self.mark, 1), ("\0" + self.mark + "d", 2), (str(self.folder / "socket"), 1)):
            self.sockets.append(socket.socket(socket.AF_UNIX, kind))
            self.sockets[-1].bind(name)
        (self.folder / "socket").chmod(0o777)
        for listener in self.sockets:
            listener.setblocking(False)
            if listener.type == socket.SOCK_STREAM:
                listener.listen()
        self.known = self.processes()

    def fill(self, code: str) -> str:
        values = {
            "CANARY": self.canary,
            "OUTSIDE": self.outside,
            "SECRET": self.file,
            "MARK": self.mark,
            "PORT": self.port,
        }
        values |= {"ABSTRACT": self.mark, "SOCKET": self.folder / "socket", "PARENT": os.getpid()}
        return re.sub(r"@([A-Z]+)@", lambda match: str(values[match[1]]), code)

    def harm(self) -> list[str]:
        """What is no longer as it was."""
        found = []
        if (
            not self.canary.exists()
            or self.canary.read_text() != "intact"
            or self.canary.stat().st_mode & 0o777 != 0o666
        ):
            found.append("the canary file was changed")
        names = sorted(path.name for path in self.folder.iterdir())
        if names != ["canary", "outside", "secret", "socket"] or list(self.outside.iterdir()):
            found.append(f"files were left: {names}, {list(self.outside.iterdir())}")
        found += [
            f"left {folder}/{self.mark}"
            for folder in ("/tmp", "/var/tmp", "/dev/shm")
            if os.path.exists(f"{folder}/{self.mark}")
        ]
        found += [f"{listener} was reached" for listener in self.sockets if self._heard(listener)]
        deadline = time.monotonic() + SLACK_SECONDS
        while (left := self.processes() - self.known) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found + [f"process {pid} is left" for pid in left]

    def processes(self) -> set[int]:
        """Our descendants, and processes of a fork server that lost their parent."""
        parents, lost = {}, set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if state != "Z":
                parents[int(folder.name)] = int(parent)
                lost |= {int(folder.name)} if parent == "1" and b"zygote.py" in command else set()
        ours = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return ours | lost

    @staticmethod
    def _heard(listener: socket.socket) -> bool:
        try:
            if listener.type == socket.SOCK_STREAM:
                listener.accept()[0].close()
            else:
                listener.recv(100)
        except BlockingIOError:
            return False
        return True

    def remove(self) -> None:
        for listener in self.sockets:
            listener.close()
        shutil.rmtree(self.folder)


def judge(box, program: Program, code: str, mode: str, expected, limits) -> list[tuple[str, bool | None, str]]:
    """Verdicts on one program in one mode."""
    from sandbox.judge import asserts, calls, stdio

    if mode == "calls":
        verdicts = [calls(box, code, "solve", [{"args": [ARGUMENT], "expected": expected}], limits=limits)]
    elif mode == "stdio":
        main = "\nprint(solve(int(input())))\n" if "def solve" in code else ""
        verdicts = [stdio(box, code + main, [{"stdin": f"{ARGUMENT}\n", "stdout": f"{expected}\n"}], limits)]
    else:
        line = f"assert solve({ARGUMENT}) == {expected!r}"
        loop = f"def check(candidate):\n    for n in ({ARGUMENT},):\n        assert candidate(n) == {expected!r}"
        verdicts = [asserts(box, code, "solve", [source], limits) for source in (line, loop)]
    return [(verdict.status, verdict.passed, verdict.detail) for verdict in verdicts]


def run(folder: str, level: str, imports: list[str]) -> dict[str, object]:
    """The level, and for each program and mode its verdicts and the harm that it did."""
    from sandbox import Limits, Sandbox

    found: list[object] = []
    warnings.simplefilter("ignore")
    limits = Limits(wall=2.0, cpu=2, memory_mb=512, processes=24, output_kb=512, disk_mb=16)
    is_attack = folder == "attacks"
    if not is_attack:
        limits = Limits()
    host = None
    with Sandbox(level=level, workers=1, imports=imports) as box:
        for program in programs(Path(__file__).with_name(folder)):
            if not set(program.settings.get("needs", "").split()) <= set(imports):
                continue
            for mode in program.settings["modes"].split():
                if host is None:
                    judge(
                        box, program, "def solve(n): return n", "asserts", 0, limits
                    )  # whatever starts late has started
                    host = Host()
                expected = host.secret if is_attack and program.settings.get("task") != "known" else ARGUMENT**2 + 1
                allowed = replace(limits, wall=float(program.settings.get("wall", limits.wall)))
                start = time.monotonic()
                verdicts = judge(box, program, host.fill(program.code), mode, expected, allowed)
                harm = host.harm()
                if (seconds := time.monotonic() - start) > len(verdicts) * (limits.wall + SLACK_SECONDS):
                    harm.append(f"took {seconds:.1f} s")
                probe = box.run(PROBE)
                if probe.stdout != "clean True\n":
                    harm.append(f"the next job found: {probe.status} {probe.stdout} {probe.stderr[-300:]}")
                found.append([program.theme, program.name, mode, verdicts, harm])
                if os.environ.get("VERBOSE"):
                    print(f"{seconds:5.2f}", found[-1], file=sys.stderr, flush=True)
                if harm:  # a new host for the next
                    host.remove()
                    host = Host()
        if host is not None:
            host.remove()
        return {"level": box.level, "uid": os.getuid(), "results": found}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], sys.argv[3:])))
