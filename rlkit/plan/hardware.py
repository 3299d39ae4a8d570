"""Machines by name: memory, speed and wires, as their makers publish them, and this machine as it is found.

Rates are dense (no structured sparsity) and one way. They are ceilings: no program reaches them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from rlkit.checks import suggestion
from rlkit.errors import UserError

CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
GB, TB, TERA = 10**9, 10**12, 10**12
SQUARE = 1024
"""The side of the matrices that this machine multiplies to see how fast it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One kind of accelerator and the node that it sits in."""

    name: str
    memory: int
    """Bytes of one device."""
    bf16: float
    """FLOP/s of matrix products in bf16 (in fp32 on a CPU)."""
    fp8: float
    """FLOP/s in FP8; the bf16 rate where there is none."""
    memory_bandwidth: float
    """Bytes/s between a device and its memory."""
    inside: float
    """Bytes/s of a device to the others of its node."""
    outside: float
    """Bytes/s of a device to other nodes: its share of the node's network cards."""
    per_node: int
    """Devices of a node."""
    host_memory: int
    """Bytes of main memory of a node."""
    source: str
    is_cpu: bool = False
    """All parts of a run share the memory, and AdamW is torch's own, with temporaries as large as what it steps."""

    def rate(self, dtype: str) -> float:
        """Returns FLOP/s of matrix products whose inputs are of this dtype."""
        return self.fp8 if dtype.startswith("fp8") and dtype != "fp8_weights" else self.bf16


KNOWN = {
    "h100": Hardware(
        name="h100",
        memory=80 * GB,
        bf16=989 * TERA,
        fp8=1979 * TERA,
        memory_bandwidth=3.35 * TB,
        inside=450 * GB,
        outside=50 * GB,
        per_node=8,
        host_memory=2 * TB,
        source="NVIDIA's data sheet of the H100 SXM, half of its figures with sparsity; DGX H100: 8 x 400 Gb/s, 2 TB",
    ),
    "h800": Hardware(
        name="h800",
        memory=80 * GB,
        bf16=989 * TERA,
        fp8=1979 * TERA,
        memory_bandwidth=3.35 * TB,
        inside=160 * GB,
        outside=50 * GB,
        per_node=8,
        host_memory=2 * TB,
        source="an H100 with narrower NVLink; NVLink 160 GB/s and InfiniBand 50 GB/s as V3's paper has them (section "
        "3.2.2); 2 TB of host memory is assumed",
    ),
    "h200": Hardware(
        name="h200",
        memory=141 * GB,
        bf16=989 * TERA,
        fp8=1979 * TERA,
        memory_bandwidth=4.8 * TB,
        inside=450 * GB,
        outside=50 * GB,
        per_node=8,
        host_memory=2 * TB,
        source="NVIDIA's data sheet of the H200 SXM, half of its figures with sparsity; DGX H200: 8 x 400 Gb/s, 2 TB",
    ),
    "h20": Hardware(
        name="h20",
        memory=96 * GB,
        bf16=148 * TERA,
        fp8=296 * TERA,
        memory_bandwidth=4.0 * TB,
        inside=450 * GB,
        outside=50 * GB,
        per_node=8,
        host_memory=2 * TB,
        source="NVIDIA's figures of the H20 as resellers give them; 8 x 400 Gb/s and 2 TB of host memory are assumed",
    ),
    "b200": Hardware(
        name="b200",
        memory=180 * GB,
        bf16=2250 * TERA,
        fp8=4500 * TERA,
        memory_bandwidth=8 * TB,
        inside=900 * GB,
        outside=50 * GB,
        per_node=8,
        host_memory=2 * TB,
        source="NVIDIA's data sheet of the DGX B200 (1,440 GB, 72 PFLOP/s of FP8 and 36 of bf16 with sparsity, 64 TB/s "
        "for 8 devices; 8 x 400 Gb/s; 2 TB)",
    ),
}
"""The `source` of each says where its figures are from."""


def find_hardware(name: str) -> Hardware:
    """Returns the hardware of a name; "this" is what this process runs on. Raises UserError for an unknown name."""
    if name == "this":
        return this_machine()
    if name not in KNOWN:
        names = [*KNOWN, "this"]
        raise UserError(f"hardware={name!r} is unknown; use one of {', '.join(names)}{suggestion(name, names)}")
    return KNOWN[name]


def this_machine() -> Hardware:
    """Returns this machine: its first GPU, known by its name, or its CPU, whose speed is tried out."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        like = next((kind for key, kind in KNOWN.items() if key.upper() in found.name.upper()), KNOWN["h100"])
        return Hardware(
            name="this",
            memory=found.total_memory,
            bf16=like.bf16,
            fp8=like.fp8,
            memory_bandwidth=like.memory_bandwidth,
            inside=like.inside,
            outside=like.outside,
            per_node=torch.cuda.device_count(),
            host_memory=main_memory(),
            source=f"{found.name}: memory as found, speeds of {like.name}",
        )
    memory, rate, bandwidth = main_memory(), _products(), _copies()
    return Hardware(
        name="this",
        memory=memory,
        bf16=rate,
        fp8=rate,
        memory_bandwidth=bandwidth,
        inside=bandwidth,
        outside=bandwidth,
        per_node=1,
        host_memory=memory,
        source=f"tried just now: products of {SQUARE} x {SQUARE} in fp32, copies of {4 * SQUARE**2 // 2**20} MiB",
        is_cpu=True,
    )


def main_memory() -> int:
    """Returns the bytes of main memory that this process may use: the machine's, or the limit of its container."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # "max" is no limit
        memory = min(memory, int(CGROUP_MEMORY.read_text()))
    return memory


def _products() -> float:
    a = torch.ones(SQUARE, SQUARE)
    return 2 * SQUARE**3 / _fastest(lambda: a @ a)


def _copies() -> float:
    a, b = torch.ones(SQUARE, SQUARE), torch.empty(SQUARE, SQUARE)
    return 2 * a.nbytes / _fastest(lambda: b.copy_(a))


def _fastest(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return max(min(seconds), 1e-9)
