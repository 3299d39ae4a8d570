"""Number formats below 16 bits: block FP8 as in the published files, and the arithmetic that V3 trains with."""

from rlkit.quant.fp8 import quantise_blocks
from rlkit.quant.linear import Float8Linear
from rlkit.quant.matmul import backends, matmul, quantise_tiles

__all__ = ["Float8Linear", "backends", "matmul", "quantise_blocks", "quantise_tiles"]
