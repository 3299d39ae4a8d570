"""Do engine and trainer compute the same? The gate after load and after every sync."""

from rlkit.parity.agreement import Agreement, ParityError
from rlkit.parity.fp8 import fp8_gate
from rlkit.parity.gate import (
    GATE,
    LENGTH,
    NUM_SEQUENCES,
    Noise,
    check_parity,
    compare,
    gate,
    gate_sequences,
)
from rlkit.parity.served import check_served

__all__ = [
    "GATE",
    "LENGTH",
    "NUM_SEQUENCES",
    "Agreement",
    "Noise",
    "ParityError",
    "check_parity",
    "check_served",
    "compare",
    "fp8_gate",
    "gate",
    "gate_sequences",
]
