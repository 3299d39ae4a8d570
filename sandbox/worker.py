"""The caller's side of one fork server, which starts it, hands it a job, hears how that ended, and ends it.

A fork server (zygote.py) is an interpreter that has loaded all modules and forks itself for each job, which is quicker
than to start an interpreter, and much quicker than to load numpy in it. It must not be a fork of the caller: the memory
of a trainer, its environment and its open files would all be in every job. So it is exec'ed, and gets one socket.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox import bwrap, isolate, paths
from sandbox.cgroup import MemoryGroup
from sandbox.protocol import KILL, MESSAGE_BYTES, Job, Reply, Settings
from sandbox.result import SandboxError

ZYGOTE = Path(__file__).with_name("zygote.py")
FLAGS = ("-P", "-s", "-S", "-X", "utf8")
"""These isolate the interpreter as `-I -S` does, but leave the variable below in force."""
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""With a fixed hash seed a program that prints a set prints the same at every run, and on every worker."""
START_SECONDS = 60.0
STOP_SECONDS = 5.0
KERNEL_BYTES = 16 << 20
"""What the page tables and the like of a job take."""
FIRST_HOST_UID, NUM_HOST_UIDS = 61200, 4000
"""The users that jobs of root become: above those of people, and below 65536, as many containers have no more."""
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings that all workers of a sandbox share."""

    level: str
    imports: tuple[str, ...]
    search: tuple[str, ...]
    visible: tuple[str, ...]


def plan(level: str, imports: tuple[str, ...]) -> Plan:
    """Finds the modules of `imports`; raises SandboxError for one that is not there."""
    search, visible = paths.import_paths(imports)
    return Plan(level=level, imports=imports, search=tuple(search), visible=tuple(visible))


class WorkerLost(Exception):
    """The fork server ended or does not answer."""


class Worker:
    """One fork server, which runs one job at a time, for one thread at a time."""

    def __init__(self, plan: Plan) -> None:
        """Keeps the settings; nothing runs before `spawn`."""
        self.plan = plan
        self.number = next(_numbers)
        self.host_uid = FIRST_HOST_UID + (os.getpid() * 8 + self.number) % NUM_HOST_UIDS
        self.group: MemoryGroup | None = None
        self.control: socket.socket
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.scratch = ""

    @property
    def single_use(self) -> bool:
        """Whether the whole container is made anew for each job."""
        return self.plan.level == "bwrap"

    def spawn(self) -> None:
        """Starts the interpreter, without waiting for it; raises SandboxError if it cannot be started."""
        container = bwrap.command(self.plan.visible) if self.plan.level == "bwrap" else []
        if self.plan.level in ("landlock", "none"):
            self.scratch = tempfile.mkdtemp(prefix="sandbox-")
            os.chmod(self.scratch, 0o711)
        # Over a socket of this kind messages arrive whole, each by itself, and descriptors can be sent with them.
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command, user = [*container, paths.executable(), *FLAGS, str(ZYGOTE), str(theirs.fileno())], None
        if container:
            user = self.host_uid if os.getuid() == 0 else None  # inside it root would have no limit on processes
        try:
            # Pipes, not /dev/null: sys.stdout of a job is the object made here, which has looked whether it can seek.
            self.process = subprocess.Popen(
                command, env=ENVIRONMENT, pass_fds=[theirs.fileno()], cwd="/", start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, user=user, group=user,
                extra_groups=None if user is None else [],
            )  # fmt: skip
        except OSError as error:
            self.control.close()
            self.stop()
            raise SandboxError(f"cannot start the fork server {command[0]}: {error}") from error
        finally:
            theirs.close()
        if self.plan.level in ("namespaces", "landlock"):  # bubblewrap forks at once: a move could come too late
            self.group = self.group or MemoryGroup.create(str(self.number))
        counted = self.group is not None and self.group.add(self.process.pid)
        with suppress(OSError):  # it has ended; await_ready says why
            self.control.send(self._settings(counted).encode())

    def _settings(self, counted: bool) -> Settings:
        root = os.getuid() == 0
        uid = {"namespaces": isolate.JOB_UID, "landlock": self.host_uid, "bwrap": None, "none": None}[self.plan.level]
        return Settings(
            level=self.plan.level, imports=self.plan.imports, search=self.plan.search, visible=self.plan.visible,
            scratch=self.scratch, uid=uid if root else None, counted=counted,
        )  # fmt: skip

    def await_ready(self) -> None:
        """Waits until jobs can come; raises SandboxError with what the fork server says is wrong."""
        if self.ready:
            return
        if self.process is None:
            self.spawn()
        try:
            self._greet()
        except BaseException:
            self.stop()
            raise
        self.ready = True

    def _greet(self) -> None:
        """Talks to the new fork server until it is ready."""
        message = self._hear(START_SECONDS)
        if message == b"unshared":
            self._map_users()
            message = self._hear(START_SECONDS)
        if message != b"ready":
            raise SandboxError(f"level {self.plan.level!r} does not work here: {self._complaint(message)}")
        if self.group is not None:
            self.group.note_base()

    def _map_users(self) -> None:
        """Maps the users of the fork server's namespace: two of them as root, else the one that the kernel allows."""
        assert self.process is not None
        folder = Path(f"/proc/{self.process.pid}")
        try:
            if os.getuid() == 0:
                text = f"0 0 1\n{isolate.JOB_UID} {self.host_uid} 1\n"
                (folder / "uid_map").write_text(text)
                (folder / "gid_map").write_text(text)
            else:
                (folder / "setgroups").write_text("deny")
                (folder / "uid_map").write_text(f"{isolate.JOB_UID} {os.getuid()} 1\n")
                (folder / "gid_map").write_text(f"{isolate.JOB_UID} {os.getgid()} 1\n")
        except OSError as error:
            raise SandboxError(f"level {self.plan.level!r} does not work here: cannot map users: {error}") from error
        self.control.send(b"mapped")

    def _hear(self, seconds: float) -> bytes:
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return b"error no answer for a minute"
        try:
            return self.control.recv(MESSAGE_BYTES)
        except OSError:
            return b""

    def _complaint(self, message: bytes) -> str:
        if message:
            return message.decode(errors="replace").removeprefix("error ")
        assert self.process is not None and self.process.stderr is not None
        self.process.kill()
        return self.process.stderr.read()[-2000:].decode(errors="replace").strip() or "the fork server ended"

    def submit(self, job: Job, fds: list[int]) -> None:
        """Starts a job with these descriptors; raises WorkerLost."""
        try:
            if self.group is not None:
                # A job's files are memory, too. The rest lets a program meet its MemoryError before the kernel does.
                self.group.limit(job.memory_bytes + job.disk_bytes + KERNEL_BYTES)
            socket.send_fds(self.control, [job.encode()], fds, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise WorkerLost from error

    def kill_job(self) -> None:
        """Ends the running job, if it has not ended."""
        with suppress(OSError):
            self.control.send(KILL, socket.MSG_NOSIGNAL)

    def reply(self) -> Reply:
        """Reads how the job ended, when `control` is readable; raises WorkerLost."""
        try:
            message = self.control.recv(MESSAGE_BYTES)
        except OSError as error:
            raise WorkerLost from error
        if not message:
            raise WorkerLost
        return Reply.decode(message)

    def memory_kills(self) -> int:
        """Returns how many processes were killed so far for want of memory, where a cgroup counts them."""
        return 0 if self.group is None else self.group.kills()

    def stop(self) -> None:
        """Ends the fork server and all that it has started. It can be spawned again.

        It sees the end of its socket, and ends. Only if it hangs is it killed: then the kernel ends its jobs, each of
        which has asked to be killed when its parent ends, or lies in a namespace whose first process has.
        """
        self.ready = False
        if self.process is not None:
            self.control.close()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            assert self.process.stdout is not None and self.process.stderr is not None
            self.process.stdout.close()
            self.process.stderr.close()
            self.process = None
        if self.group is not None:
            self.group.remove()
            self.group = None
        if self.scratch:
            paths.remove(self.scratch)
            self.scratch = ""

    def hang_up(self) -> None:
        """Makes the fork server end, so that whoever waits for one of its jobs sees that it is lost."""
        if self.process is not None:
            with suppress(OSError):
                self.control.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Lets go of it and leaves it running, in a child of the process that started it."""
        if self.process is not None:
            self.control.close()
