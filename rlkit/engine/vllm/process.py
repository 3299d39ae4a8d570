"""The first and the last that a worker process of vLLM does; it imports this file before it imports vLLM."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rlkit.engine.vllm.start import mend_process

logging.getLogger("vllm").setLevel(logging.ERROR)  # vLLM sets it after its first messages


def begin_here(cuda: bool) -> None:
    """Makes the executor of this process start its workers with `worker_main` below in place of vLLM's own."""
    executor: Any = import_module("vllm.v1.executor.multiproc_executor")
    executor.WorkerProc.worker_main = staticmethod(partial(worker_main, cuda))


def worker_main(cuda: bool, *args: Any, **kwargs: Any) -> None:
    """Mends this process as the engine's own is mended with one worker, and runs vLLM's worker in it.

    The worker ends when the engine's process closes a pipe, which the kernel does for it if it is killed.
    """
    atexit.register(_leave)  # what is registered first runs last
    if not cuda:
        mend_process()
    executor: Any = import_module("vllm.v1.executor.multiproc_executor")
    executor.WorkerProc.worker_main(*args, **kwargs)


def _leave() -> None:
    """Ends this process after Python has run all else that it runs at an exit.

    What it would do next is to end C++ threads that nobody has joined, which aborts with "terminate called without an
    active exception".
    """
    gc.collect()  # queues in shared memory go with their objects
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def forget_shared_names(worker: Any) -> None:
    """Takes away the names of the memory in which the workers sum: whoever is killed then leaves no file behind.

    All have mapped it while they started, and need its name no more.
    """
    for file in Path("/dev/shm").glob(f"*{os.environ['VLLM_DIST_IDENT']}-tp:*-cpushm_{worker.rank}"):
        file.unlink(missing_ok=True)
