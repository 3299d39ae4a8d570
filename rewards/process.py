"""A process of its own behind a pipe: the caller asks, holds the deadline of every answer, and can kill it.

Rewards run code that may hang inside a C function, fill the memory, or call `os._exit`. Neither a thread nor an alarm
ends all of that, but a process can be killed, together with everything that it started. Three callers share this class:
the scoring of a run, the audit of a reward, and the pool of the mathematics reward.

The process ends with its caller, however that ends: the kernel closes the caller's end of the pipe, and the process,
which waits at the other end, reads that and leaves. What is not covered: other machines, and systems without /proc,
where processes that moved to a session of their own outlive a kill.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

_BOOT = """
import sys
from importlib.machinery import PathFinder
descriptor, serve, folder, *sys.path[:] = sys.argv[1:]
class Own:
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [folder]) if name in ("rewards", "rlkit", "sandbox") else None
sys.meta_path.insert(0, Own)
from rewards.process import main
main(int(descriptor), serve)
"""
"""What the process runs first. It must import nothing else before its search path is that of the caller. Our own
packages come from the caller's folder whatever the search path says, so that both run the same code."""
_FOLDER = str(Path(__file__).resolve().parents[1])
_SIZE = struct.Struct("!Q")
"""Stands before every message and says how many bytes it has."""
_PIECE = 1 << 20
_SHORTEST_S = 1e-3
"""A socket takes a time limit of 0 as "do not wait at all", which is not meant when the time has just run out."""


class Overdue(Exception):
    """No answer came in time. If it came later it would pass for that to the next question, so kill the process."""


class Gone(Exception):
    """The other end of the pipe is closed: the process, or its caller, has ended."""


class Channel:
    """One end of the pipe. What passes through are whole Python objects, pickled, and never halves of them."""

    def __init__(self, end: socket.socket) -> None:
        """Takes over one end of a connected pair of sockets."""
        self._socket = end

    def send(self, message: object, seconds: float | None = None) -> None:
        """Sends an object; raises Overdue if the other side does not read it in time, and Gone if nobody is there."""
        body = pickle.dumps(message)
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(_SIZE.pack(len(body)) + body)
        except TimeoutError:
            raise Overdue from None
        except OSError:
            raise Gone from None

    def receive(self, seconds: float | None = None) -> Any:
        """Returns the next object; raises Overdue if it is not all there in time, and Gone if none will come."""
        deadline = None if seconds is None else time.monotonic() + seconds
        (size,) = _SIZE.unpack(self._read(_SIZE.size, deadline))
        return pickle.loads(self._read(size, deadline))

    def close(self) -> None:
        """Closes this end; who waits at the other gets Gone."""
        self._socket.close()

    def _read(self, size: int, deadline: float | None) -> bytes:
        # The kernel hands over what has arrived, which may be any part of a message. A process that is stopped in the
        # middle of one must not hold its caller up, so the deadline counts for every part.
        found = bytearray()
        while len(found) < size:
            try:
                self._socket.settimeout(None if deadline is None else max(deadline - time.monotonic(), _SHORTEST_S))
                piece = self._socket.recv(min(size - len(found), _PIECE))
            except TimeoutError:
                raise Overdue from None
            except OSError:
                raise Gone from None
            if not piece:
                raise Gone
            found += piece
        return bytes(found)


class Process:
    """The process and the caller's end of the pipe; not for two threads at a time."""

    def __init__(self, serve: str, *, prints: bool) -> None:
        """Starts it; `serve`, as "module:function", is called there with its Channel and returns when that closes.

        With `prints=False` what it writes to its standard output is thrown away. Raises OSError if the machine lets no
        process start.
        """
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), serve, _FOLDER, *search_path()]
        try:
            # By exec and not by a fork, so that nothing of the caller's memory, locks and threads is in it. In a
            # session of its own, so that Ctrl-C in the terminal reaches the caller only, which then ends the process.
            self._program = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=None if prints else subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours)
        self._is_over, self._killing = False, threading.Lock()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._program.pid

    def send(self, message: object, seconds: float) -> None:
        """Sends an object; raises Overdue and Gone."""
        self._channel.send(message, seconds)

    def receive(self, seconds: float) -> Any:
        """Returns the next answer; raises Overdue and Gone. After either of these the process is of no more use."""
        return self._channel.receive(seconds)

    def dismiss(self) -> None:
        """Closes the pipe: a process that waits for the next question ends by itself, as soon as it has cleaned up."""
        self._channel.close()

    def kill(self) -> int:
        """Ends the process and everything below it at once; returns the exit code, below 0 for a signal.

        The pipe stays open, so that a thread which waits for an answer reads its end and is not left behind.
        """
        with self._killing:  # a second thread waits for the first one's end
            if self._is_over:  # by now its id may belong to somebody else
                return self._program.wait()
            family = self._stopped_family() if self._program.returncode is None else set[int]()
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)  # also those whose parent has died, to whom nothing else leads
            for pid in family:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self._is_over = True
            return self._program.wait()

    def end(self, patience: float) -> int:
        """Dismisses it, waits up to `patience` seconds for its end, then kills what is left; returns the exit code."""
        self.dismiss()
        with suppress(subprocess.TimeoutExpired):
            self._program.wait(patience)
        return self.kill()

    def _stopped_family(self) -> set[int]:
        """The process and all below it, whatever session they moved to, each of them stopped.

        Children of a killed process are handed to init, and nothing says any more whose they were. So all have to be
        found before the first is killed. While we look they could start others: each one found is therefore stopped,
        and we look again until a look finds nobody new.
        """
        from sandbox.isolate import descendants  # here: it takes longer to import than all else, and few kill

        found, stopped = {self.pid}, set[int]()
        while fresh := found - stopped:
            for pid in fresh:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= fresh
            with suppress(OSError):  # there is no /proc
                found |= set(descendants(self.pid))
        return found


def search_path() -> list[str]:
    """Where the process looks for modules: in the folders of its caller, but in the current one last of all.

    Otherwise a user's `json.py` or `tokenizers.py` in the folder where he works would be imported in place of the
    module that is meant.
    """
    folders = [str(folder) for folder in sys.path]
    try:
        here = os.getcwd()
    except FileNotFoundError:  # somebody has removed it
        return folders
    return sorted(folders, key=lambda folder: os.path.realpath(folder) == here)  # all others keep their order


def main(descriptor: int, serve: str) -> None:
    """Runs `serve` on an inherited end of a pipe until the other end closes: what the process does."""
    del sys.argv[1:]  # they are ours; a reward that looks at the command line has nothing to learn from them
    os.set_inheritable(descriptor, False)  # else whatever the reward starts would hold the pipe open
    module, _, function = serve.partition(":")
    with suppress(Gone):
        vars(import_module(module))[function](Channel(socket.socket(fileno=descriptor)))
