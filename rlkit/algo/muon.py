"""Muon: the momentum of a matrix, with all its singular values brought close to 1, is the direction of its step.

Keller Jordan et al., Muon: An optimizer for hidden layers in neural networks, kellerjordan.github.io/posts/muon (2024);
scale and weight decay: Moonlight, arXiv:2502.16982, section 2.2. Shapes: A rows, B columns.

    M <- mu M + (1 - mu) G                        the momentum of the gradient G
    N  = mu M + (1 - mu) G                        one step ahead (Nesterov)
    O  = NewtonSchulz(N)                          about U V^T, for N = U S V^T
    W <- W - lr (0.2 sqrt(max(A, B)) O + decay W)

The entries of an O of full rank have a root mean square of sqrt(min(A, B) / (A B)) = 1 / sqrt(max(A, B)). So the factor
makes that of a step 0.2 lr, which is what AdamW's steps come to: learning rate and decay of the one serve the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOMENTUM = 0.95
"""mu."""
A5, B5, C5 = 3.4445, -4.7750, 2.0315
"""x -> a x + b x^3 + c x^5 brings every x in (0, 1] near 1 as fast as it can, and then keeps it in 0.7 .. 1.2."""
ROUNDS = 5
FLOOR = 1e-7
"""The norm of what is divided is at least so large, so that a matrix of zeros stays one."""


def orthogonalised(x_AB: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Computes U f(S) V^T for X = U S V^T, with f(s) between 0.7 and 1.2 for all but the smallest s: [A, B].

    Five rounds of X <- a X + (b X X^T + c (X X^T)^2) X, which touch the singular values and nothing else. They run in
    `dtype`: bf16 is what the post uses; the result has the dtype of X.
    """
    wide = x_AB if x_AB.shape[0] <= x_AB.shape[1] else x_AB.mT
    # A singular value is at most the Frobenius norm.
    y = (wide / wide.norm().clamp(min=FLOOR)).to(dtype)
    for _ in range(ROUNDS):
        square = y @ y.mT
        # a y + (b square + c square square) y, rounded as rarely as bf16 allows
        y = torch.addmm(y, torch.addmm(square, square, square, beta=B5, alpha=C5), y, beta=A5)
    return (y if wide is x_AB else y.mT).to(x_AB.dtype)


def step_scale(rows: int, columns: int) -> float:
    """0.2 sqrt(max(A, B)) (arXiv:2502.16982, section 2.2)."""
    return 0.2 * math.sqrt(max(rows, columns))
