"""The walls around a job, built inside the fork server, some of them once and some for each job.

Each level has a class, which adds walls to those of the class above it:

    Walls        none         limits of the kernel for each process
    Filtered     landlock     and a user of its own, Landlock, a filter for system calls
    Namespaces   namespaces   and a root, network, process and user tree of its own
    Contained    bwrap        as Namespaces, in a container that bubblewrap has made

The fork server calls `enter` once. For each job it calls `fork`; the child then calls `prepare`, as long as it may
mount and change users, and `confine`, which takes that and everything else away. When the job is over, or has to be,
the fork server calls `kill` and, after it has waited for the child, `sweep`.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress

from sandbox import kernel, landlock, paths, seccomp
from sandbox.protocol import Job, Settings

JOB_UID = 1000
"""The id that the user of a job has inside its user namespace."""
PR_SET_KEEPCAPS = 8
CAP_DAC_READ_SEARCH = 1 << 2
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
STREAMS = {
    "/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}  # fmt: skip
"""The names of a program's own streams, which are links, and what they point to; a host has the same ones."""
WRITABLE = ("/box", "/tmp", "/dev/shm")
ROOTS = ("/sys", "/mnt", "/media", "/srv")
"""Folders on which the new root can be built: they exist nearly everywhere, and no interpreter lies in them."""
MAX_FILES = 16384
STACK_BYTES = 256 << 20
"""A Python function that calls itself through a function in C, as with `lru_cache` or a key of `sorted`, takes up to
several KiB of it for each call. With this much it meets the recursion limit of a session before the end of the
stack."""
OPEN_FILES = 256


def descendants(root: int) -> Iterator[int]:
    """Yields the ids of all processes below `root`, as /proc shows them."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                children.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    pending = children.pop(root, [])
    while pending:
        pid = pending.pop()
        yield pid
        pending += children.pop(pid, [])


class Walls:
    """Has what all levels have, the limits of the kernel for each process; alone it is level `none`."""

    def __init__(self, settings: Settings) -> None:
        """Keeps what the caller said."""
        self.settings = settings
        self.other_processes = 0
        """How many processes count against a job's limit besides its own."""

    def enter(self, control: socket.socket) -> None:
        """Does what is done once, after the imports; raises OSError for a call that the kernel refuses."""
        # A process whose parent ends goes to the next subreaper above it. So a daemon, which gets away from its family
        # by letting its parent end, becomes our child: `sweep` finds it there, and we can wait for it.
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)

    def fork(self) -> int:
        """Makes the process of a job; returns its id, and 0 in it."""
        return os.fork()

    def prepare(self, job: Job) -> None:
        """Makes the job's folders and changes into the first; the candidate's process does this."""
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # the kernel ends us when the fork server ends
        for name in ("box", "tmp"):
            os.mkdir(f"{self.settings.scratch}/{name}", 0o700)
            if self.settings.uid is not None:
                os.chown(f"{self.settings.scratch}/{name}", self.settings.uid, self.settings.uid)
        os.environ.update(HOME=f"{self.settings.scratch}/box", TMPDIR=f"{self.settings.scratch}/tmp")
        os.chdir(f"{self.settings.scratch}/box")

    def confine(self, job: Job, address_space: int) -> None:
        """Gives up all that the candidate must not have; its process does this before its code starts."""
        os.setsid()
        for name, soft, hard in (
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_CPU, job.cpu_seconds, job.cpu_seconds + 1),
            (resource.RLIMIT_FSIZE, job.disk_bytes, job.disk_bytes),
            (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
            (resource.RLIMIT_STACK, STACK_BYTES, resource.RLIM_INFINITY),  # programs ask for more, as in contests
            (resource.RLIMIT_AS, address_space, address_space),
            (resource.RLIMIT_NPROC, job.processes + self.other_processes, job.processes + self.other_processes),
        ):
            _, most = resource.getrlimit(name)
            if most != resource.RLIM_INFINITY:
                soft, hard = min(soft, most), most if hard == resource.RLIM_INFINITY else min(hard, most)
            resource.setrlimit(name, (soft, hard))

    def kill(self, pid: int) -> None:
        """Ends a job whose first process has not been waited for; the fork server does this.

        Until somebody waits for a process that has ended, its id is taken, so these signals can meet no other process.
        """
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):  # all that stayed in its process group at one blow, which ends a fork bomb
            os.killpg(pid, signal.SIGKILL)

    def sweep(self) -> None:
        """Ends what else there is of the job, after `kill` and the end of its first process.

        Without a process namespace nothing holds the processes of a job together: they may have left its group and its
        session, and lost their parents. But all of them are our descendants. One look at /proc may miss a process that
        is being forked, so we look until nothing is left: a process that gets SIGKILL forks no more, so that only those
        which nobody has seen can still have children.
        """
        while True:
            left = list(descendants(os.getpid()))
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not left:
                break
        for name in ("box", "tmp"):
            paths.remove(f"{self.settings.scratch}/{name}")

    def leave(self) -> None:
        """Clean up at the end of the fork server: the caller may have been killed, so that nobody else would do it."""
        if self.settings.scratch:
            paths.remove(self.settings.scratch)


class Filtered(Walls):
    """Adds seccomp, Landlock and a user for the job; alone it is level `landlock`."""

    def enter(self, control: socket.socket) -> None:
        """Builds the filter; raises OSError where the kernel has no Landlock."""
        super().enter(control)
        self._server = os.getpid()
        self.filter = seccomp.Filter()
        self.landlock = landlock.abi()
        if not self.landlock and self.settings.level == "landlock":
            raise OSError("this kernel has no Landlock")
        if self.settings.uid is not None:
            os.setgroups([])
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # no job may look into this process
        visible = paths.outermost([*self.settings.visible, *paths.interpreter_paths()])
        self.readable = [*visible, *filter(os.path.exists, DEVICES)]
        # Root may have its interpreter in a folder of mode 700, which the job's user cannot pass: Landlock then
        # is what says which files can be read.
        self.kept = 0 if self.settings.uid is None or all(map(_open_to_all, visible)) else CAP_DAC_READ_SEARCH

    def writable(self) -> list[str]:
        """Returns the paths below which a job may write."""
        return [f"{self.settings.scratch}/box", f"{self.settings.scratch}/tmp", "/dev/null"]

    def confine(self, job: Job, address_space: int) -> None:
        """Changes the user, drops capabilities, sets limits, and enters Landlock and the filter.

        The order matters: each step needs what the next one takes away, and the filter forbids all of them.
        """
        uid = self.settings.uid
        if uid is not None:
            if self.kept:
                kernel.prctl(PR_SET_KEEPCAPS, 1)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        kernel.set_capabilities(self.kept)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # the change of user cleared it; the fork server reads our memory use
        if self.settings.level == "landlock" and uid is None:
            self.other_processes = _threads_of(os.getuid())  # all of the user's count, not only those of the job
        super().confine(job, address_space)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # the change of user cleared it, too
        # PDEATHSIG comes when the parent ends, not if it had ended before it was asked for. A parent outside of our
        # process namespace shows as 0.
        if os.getppid() not in (0, self._server):
            os._exit(1)
        if self.landlock:
            landlock.restrict(self.readable, self.writable(), self.landlock)
        self.filter.install()


class Namespaces(Filtered):
    """Adds a root, network, process and user tree of the sandbox's own: level `namespaces`."""

    def enter(self, control: socket.socket) -> None:
        """Leaves the host. When the caller hears "unshared" it maps our users, for which we have no right any more."""
        kernel.unshare(
            kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS
            | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
        )  # fmt: skip
        control.send(b"unshared")
        if control.recv(16) != b"mapped":
            os._exit(1)
        pid = os.fork()  # into the new process namespace, whose first process this is: with it ends every job
        if pid:
            control.close()
            os.waitpid(pid, 0)
            os._exit(0)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        self._init, self._stack = 0, kernel.stack()
        self._own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._build_root()
        super().enter(control)
        self.readable = ["/"]
        self.kept = 0
        self.other_processes = 0 if self.settings.uid is not None else 3  # the fork server's two and the init
        kernel.drop_bounding_set()

    def _build_root(self) -> None:
        kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        shown = paths.outermost([*self.settings.visible, *paths.interpreter_paths()])
        self._within = [path for path in shown if path.startswith(tuple(f"{folder}/" for folder in WRITABLE))]
        root = next(root for root in ROOTS if os.path.isdir(root) and not any(path.startswith(root) for path in shown))
        kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m")
        for path in (*WRITABLE, "/job", "/proc", "/etc"):
            os.makedirs(root + path, exist_ok=True)
        for path in (*shown, *DEVICES):
            target = root + path
            _make_target(path, target)
            if path in DEVICES:
                kernel.mount(path, target, None, kernel.MS_BIND)
            else:
                kernel.bind_read_only(path, target)
        for path, target in STREAMS.items():
            os.symlink(target, root + path)
        for name, line in (("passwd", f"user:x:{JOB_UID}:{JOB_UID}::/box:"), ("group", f"user:x:{JOB_UID}:")):
            with open(f"{root}/etc/{name}", "w") as file:
                file.write(line + "\n")
        # The kernel allows a new /proc only next to a complete one: before the old root goes.
        kernel.mount("proc", f"{root}/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        kernel.pivot_root(root)
        sealed = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount(None, "/", None, sealed)

    def fork(self) -> int:
        """Makes the job's process in a process namespace of its own, beside an init.

        The first process of a namespace is its init. When it ends, the kernel ends all others in the namespace at once,
        however they try to hide: that is how a job is ended. Orphans become children of the init, which would have to
        wait for each, or they would stay as zombies. Ours only sleeps. But it is started with SIGCHLD ignored, and of a
        parent that ignores it the kernel reaps the children itself.

        After `unshare` new children are in the new namespace, while we stay where we are; `setns` takes that back, so
        that the next job can get another one. The init shares our memory, because a copy of our page tables would cost
        as much as the rest of its start.
        """
        kernel.unshare(kernel.CLONE_NEWPID)
        pid, self._init = -1, 0
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            self._init = kernel.clone_sleeper(self._stack)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pid = os.fork()
        finally:
            if pid:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                kernel.setns(self._own_namespace, kernel.CLONE_NEWPID)
                if pid < 0 and self._init:
                    self.kill(pid)
                    self.sweep()
        return pid

    def prepare(self, job: Job) -> None:
        """Mounts empty folders on one file system of limited size, and a /proc that shows this job only."""
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else /proc/self is not ours
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # when memory runs out it is the job that goes, not the fork server
        kernel.unshare(kernel.CLONE_NEWNS)
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("tmpfs", "/job", "tmpfs", flags, f"mode=755,size={job.disk_bytes},nr_inodes={MAX_FILES}")
        for path in WRITABLE:
            folder = f"/job/{os.path.basename(path)}"
            os.mkdir(folder, 0o700)
            if self.settings.uid is not None:
                os.chown(folder, self.settings.uid, self.settings.uid)
            for shown in self._within:  # as when an environment lies in the host's /tmp
                if shown.startswith(f"{path}/"):
                    inside = folder + shown.removeprefix(path)
                    _make_target(shown, inside)
                    kernel.mount(shown, inside, None, kernel.MS_BIND)
            kernel.mount(folder, path, None, kernel.MS_BIND | kernel.MS_REC)
        kernel.umount("/job")
        kernel.mount("proc", "/proc", "proc", flags | kernel.MS_NOEXEC | kernel.MS_RDONLY)
        os.chdir("/box")

    def writable(self) -> list[str]:
        """Returns the paths below which a job may write."""
        return [*WRITABLE, "/dev/null"]

    def kill(self, pid: int) -> None:
        """Ends the init; with it the kernel ends all processes, and with these their mounts and files."""
        os.kill(self._init, signal.SIGKILL)

    def sweep(self) -> None:
        """Waits for the init, which is the last to go: what it was parent of is gone then."""
        os.waitpid(self._init, 0)


def _make_target(source: str, target: str) -> None:
    """Makes what a bind mount of `source` will cover, a folder or a file."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))


class Contained(Namespaces):
    """Runs inside a container that bubblewrap makes anew for each job: level `bwrap`."""

    def enter(self, control: socket.socket) -> None:
        """Filter; bubblewrap has made the namespaces and the root."""
        Filtered.enter(self, control)
        self.readable = ["/"]

    def fork(self) -> int:
        """Makes the job's process, with which the whole container will go."""
        return os.fork()

    kill, sweep = Walls.kill, Walls.sweep

    def prepare(self, job: Job) -> None:
        """Changes into the first of the folders, which bubblewrap has made."""
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chdir("/box")


def walls(settings: Settings) -> Walls:
    """Returns the walls of a level."""
    kinds = {"namespaces": Namespaces, "bwrap": Contained, "landlock": Filtered, "none": Walls}
    return kinds[settings.level](settings)


def _open_to_all(path: str) -> bool:
    while path != "/":
        with suppress(OSError):
            mode = os.stat(path).st_mode
            if not mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH):
                return False
        path = os.path.dirname(path)
    return True


def _threads_of(uid: int) -> int:
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            total += len(os.listdir(f"/proc/{name}/task")) if os.stat(f"/proc/{name}").st_uid == uid else 0
    return total
