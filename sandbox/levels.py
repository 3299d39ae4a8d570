"""The levels of isolation, what each leaves open, and the attacks that a level must stop before it is used."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox import paths
from sandbox.job import Running
from sandbox.result import Limits, SandboxError
from sandbox.worker import Worker

LEVELS = ("namespaces", "bwrap", "landlock", "none", "remote")
"""The strongest comes first; only the last, `remote`, is as strong as its service."""
AUTOMATIC = LEVELS[:3]
OPEN = {
    "namespaces": "kernel holes and side channels (time, caches); not a virtual machine",
    "bwrap": "as namespaces, and disk use is limited to 256 MiB in each folder whatever `disk_mb` says",
    "landlock": (
        "without a memory cgroup total memory is checked only 20 times a second, total disk use is not limited (each "
        "file is), names and sizes of the host's files show through stat(), leftover processes are ended by search, "
        "and multiprocessing has no locks"
    ),
    "none": (
        "programs run with your own rights: files, network and processes of this user are exposed; "
        "only time, output and the kernel's limits per process hold"
    ),
    "remote": (
        "what the service does not protect; programs and their input leave this machine; the limits cpu, processes and "
        "disk_mb are not passed on"
    ),
}
LONGEST_FOLDER = 70
"""How many characters the path of a temporary folder may have so that a socket in it still gets a name."""
ATTACK_LIMITS = Limits(wall=20.0, cpu=10.0, memory_mb=512, processes=16)
ATTACKS = """
import ctypes, json, os, signal, socket, sys
def read_a_file(): return open(HOST_FILE).read()
def write_a_file(): open(HOST_FILE, "a").write("x")
def make_a_file(): open(HOST_FILE + ".new", "w").close()
def signal_a_process(): os.kill(HOST_PROCESS, signal.SIGTERM)
def connect_to_tcp(): socket.create_connection(("127.0.0.1", HOST_PORT), 1).close()
def connect_to_a_unix_socket():
    s = socket.socket(socket.AF_UNIX); s.connect(HOST_SOCKET)
def connect_to_an_abstract_socket():
    s = socket.socket(socket.AF_UNIX); s.connect("\\0" + HOST_ABSTRACT)
def send_udp(): socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", HOST_PORT))
def run_a_program():
    if os.fork() == 0:
        try: os.execv(PYTHON, [PYTHON, "-c", ""])
        finally: os._exit(1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
def become_root(): os.setuid(0)
def make_a_namespace(): assert ctypes.CDLL(None).unshare(0x10000000) == 0
def trace_a_process(): assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0
def read_the_environment(): assert b"SANDBOX_CANARY" in open(f"/proc/{os.getppid()}/environ", "rb").read()
held = []
for name, attack in list(globals().items()):
    if callable(attack):
        try: attack()
        except BaseException: held.append(name)
print(json.dumps(held), flush=True)
if os.fork() == 0:
    os.setsid()
    while True: signal.pause()
"""
"""Each function succeeds or raises. Last comes a process that wants to live on, and holds stdout open until it dies."""

ATTACK_NAMES = tuple(line.split()[1].partition("(")[0] for line in ATTACKS.splitlines() if line.startswith("def "))


def _short_folder() -> str | None:
    """Returns where to make the canary's folder: the name of a socket in it may have 107 characters at most."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER else "/tmp"


@contextmanager
def _host() -> Iterator[dict[str, object]]:
    """Makes things on the host that an attack could reach, and yields them by the names that `ATTACKS` uses."""
    mark = f"sandbox-canary-{os.getpid()}-{os.urandom(4).hex()}"
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-canary-", dir=_short_folder()) as folder,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as abstract,
        subprocess.Popen(
            [paths.executable(), "-I", "-S", "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            env={"SANDBOX_CANARY": "1"},
            cwd="/",
        ) as victim,
    ):
        os.chmod(folder, 0o755)
        file = Path(folder, "file")
        file.write_text("canary")
        file.chmod(0o666)
        named.bind(f"{folder}/socket")
        os.chmod(f"{folder}/socket", 0o777)
        named.listen()
        abstract.bind("\0" + mark)
        abstract.listen()
        yield {
            "HOST_FILE": str(file), "HOST_PROCESS": victim.pid, "HOST_PORT": tcp.getsockname()[1],
            "HOST_SOCKET": f"{folder}/socket", "HOST_ABSTRACT": mark, "PYTHON": sys.executable,
        }  # fmt: skip
        assert victim.stdin is not None
        victim.stdin.close()


def attack(worker: Worker) -> None:
    """Lets a program inside try each attack; raises SandboxError naming those that come through."""
    try:
        with _host() as host:
            code = "".join(f"{name} = {value!r}\n" for name, value in host.items()) + ATTACKS
            result = Running(worker, ATTACK_LIMITS, code, "").result()
    except OSError as error:
        raise SandboxError(f"level {worker.plan.level!r}: what the canary attacks cannot be made: {error}") from error
    if result.status != "ok":
        raise SandboxError(f"level {worker.plan.level!r} does not work here: {result.status} {result.stderr[-500:]}")
    held = json.loads(result.stdout)
    if through := [name for name in ATTACK_NAMES if name not in held]:
        raise SandboxError(f"level {worker.plan.level!r} does not hold here: a program could {', '.join(through)}")
