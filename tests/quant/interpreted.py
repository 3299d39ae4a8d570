"""The kernels of `triton` on the CPU: one process, whose Triton was told to interpret before it was imported.

TRITON_INTERPRET=1 python -m tests.quant.interpreted OUT
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from rlkit.quant import backends, float8_linear, matmul, quantise_tiles, quantise_weight
from tests.quant.test_backends import MATRICES, PRODUCTS, drawn, operands

Pair = tuple[Tensor, Tensor]


def quantised(backend: str | None) -> dict[str, Pair]:
    """Codes and scales of every matrix, as it is and transposed, with both kinds of scales and both kinds of areas."""
    found: dict[str, Pair] = {}
    for name, matrix in MATRICES.items():
        for powers_of_two in (False, True):
            for turned in (False, True):
                x = matrix.T if turned else matrix
                key = f"{name}{' transposed' if turned else ''}{', powers of two' if powers_of_two else ''}"
                found[f"tiles of {key}"] = quantise_tiles(x, powers_of_two=powers_of_two, backend=backend)
                found[f"blocks of {key}"] = quantise_weight(x, powers_of_two=powers_of_two, backend=backend)
    return found


def products(backend: str | None) -> dict[str, Tensor]:
    """Every product in both dtypes."""
    return {
        f"{case} in {dtype}": matmul(*operands(*case), backend=backend, out_dtype=dtype)
        for case in PRODUCTS
        for dtype in (torch.float32, torch.bfloat16)
    }


def main(out: str) -> None:
    """Writes what the kernels compute, and what else this process may use."""
    x_TK, weight_NK = drawn(5, 130), drawn(3, 130, seed=1)
    usual = float8_linear(x_TK, weight_NK)  # on the CPU nobody gets interpreted kernels without asking for them
    torch.save(
        {
            "usable": backends(),
            "quantised": quantised("triton"),
            "products": products("triton"),
            "nothing": [tensor.shape for tensor in quantise_tiles(torch.zeros(0, 256), backend="triton")],
            "usual": torch.equal(usual, matmul(*quantise_tiles(x_TK), *quantise_weight(weight_NK), "emulate")),
        },
        out,
    )


if __name__ == "__main__":
    main(sys.argv[1])
