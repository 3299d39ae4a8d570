"""Number formats below 16 bits: block FP8 as in the published files, and the arithmetic that V3 trains with."""

from rlkit.quant.fp8 import quantise_blocks
from rlkit.quant.grouped import float8_grouped
from rlkit.quant.linear import Float8Linear, float8_linear
from rlkit.quant.matmul import backends, dequantise_tiles, matmul, quantise_tiles, quantise_weight, unusable
from rlkit.quant.weights import straight_through

__all__ = [
    "Float8Linear",
    "backends",
    "dequantise_tiles",
    "float8_grouped",
    "float8_linear",
    "matmul",
    "quantise_blocks",
    "quantise_tiles",
    "quantise_weight",
    "straight_through",
    "unusable",
]
