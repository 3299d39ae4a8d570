"""The routed experts of a layer, stacked, and the moves of tokens to them and back (arXiv:2412.19437, section 2.1.2).

Tokens are sorted by expert, so that each expert multiplies one contiguous block. The moves are permutations whose
gradients are written as gathers: no scatter-add, hence the same bits on every run.
`rlkit.model.dispatch` moves them between ranks where these share out the experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlkit.model.config import DeepseekV3Config
from rlkit.model.dispatch import Dispatcher, Here

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Multiplies blocks of rows [M, K], which end at ends [L], each with its expert's matrix [L, N, K]: [M, N]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShare:
    """Says which of the routed experts of every layer a rank holds: part `rank` of `size` equal parts, in order."""

    rank: int
    size: int

    def of(self, num_experts: int) -> range:
        """Returns the numbers of the experts; raises ValueError where they do not divide."""
        if num_experts % self.size:
            raise ValueError(f"{num_experts} experts cannot be divided among {self.size} ranks")
        each = num_experts // self.size
        return range(self.rank * each, (self.rank + 1) * each)


ALL = ExpertShare(rank=0, size=1)
"""Every expert."""


def grouped_product(x_MK: Tensor, weight_LNK: Tensor, ends_L: Tensor) -> Tensor:
    """Computes x_m W_l^T for every row m of the block of expert l: [M, N]."""
    return F.grouped_mm(x_MK, weight_LNK.transpose(1, 2), offs=ends_L)


class _ScaledSwiGLU(torch.autograd.Function):
    """Computes y = w silu(a) b for h = [a, b]; autograd's own version copies both halves once more."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(h, weight)
        gate, up = h.chunk(2, dim=-1)
        return F.silu(gate).mul_(up).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        h, weight = ctx.saved_tensors
        (grad,) = grads
        gate, up = h.chunk(2, dim=-1)
        grad_h = torch.empty_like(h)
        grad_gate, grad_up = grad_h.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        grad_weight = torch.linalg.vecdot(grad_up, up).unsqueeze(1)
        torch.mul(torch.ops.aten.silu_backward(grad, gate), up, out=grad_gate)
        return grad_h.mul_(weight), grad_weight


class _Copy(torch.autograd.Function):
    """Copies each token to its K places in expert order: [T, D] -> [T * K, D]."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, sources: Tensor, places_TK: Tensor) -> Tensor:
        ctx.save_for_backward(places_TK)
        return x_TD.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (places_TK,) = ctx.saved_tensors
        return F.embedding_bag(places_TK, grads[0], mode="sum"), None, None


class _Combine(torch.autograd.Function):
    """Sums the K expert outputs of each token, the transpose of `_Copy`: [T * K, D] -> [T, D]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, sources: Tensor, places_TK: Tensor) -> Tensor:
        ctx.save_for_backward(sources)
        return F.embedding_bag(places_TK, y, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (sources,) = ctx.saved_tensors
        return grads[0].index_select(0, sources), None, None


class Experts(nn.Module):
    """Holds routed experts, stacked: gate and up [L, 2I, D], down [L, D, I]; L of the E are on this rank."""

    def __init__(self, config: DeepseekV3Config, share: ExpertShare = ALL) -> None:
        super().__init__()
        self.num_experts, self.share = config.n_routed_experts, share
        held, width, hidden = len(share.of(config.n_routed_experts)), config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(held, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(held, hidden, width))
        self.dispatcher: Dispatcher = Here()
        self.product: Product = grouped_product

    def forward(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """Computes y_t = sum_k g_tk expert_k(x_t): [T, D] -> [T, D]."""
        # Sort the T K choices by expert. `sources` says which token stands at each place of that order, `places_TK`
        # where the K copies of a token went.
        flat = experts_TK.flatten()
        order = flat.argsort(stable=True)
        sources = order // experts_TK.shape[1]
        places_TK = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        places_TK = places_TK.view_as(experts_TK)
        rows = _Copy.apply(x_TD, sources, places_TK)
        gates = weights_TK.flatten()[order].unsqueeze(1)
        here = self.dispatcher.out(rows, gates, torch.bincount(flat, minlength=self.num_experts))
        h = self.product(here.rows_MD, self.gate_up_proj, here.ends_L)
        # The gate scales the I inner numbers instead of the D outputs: the same product, fewer multiplications.
        h = _ScaledSwiGLU.apply(h, here.gates_M1.to(h.dtype))
        outputs = self.dispatcher.back(self.product(h, self.down_proj, here.ends_L), here)
        return _Combine.apply(outputs, sources, places_TK)
