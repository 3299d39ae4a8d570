"""Feed-forward layers: the dense MLP and the mixture of shared and routed experts (arXiv:2412.19437, section 2.1.2).

Tokens are sorted by expert, so that each expert multiplies one contiguous block. The moves are permutations whose
gradients are written as gathers: no scatter-add, hence the same bits on every run.
What is not covered: experts spread over several ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlkit.model.config import DeepseekV3Config
from rlkit.model.routing import RULES, Routing, choice_margins, choose_experts, gate_weights, router_scores


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


class _Dispatch(torch.autograd.Function):
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
    """Sums the K expert outputs of each token, the transpose of `_Dispatch`: [T * K, D] -> [T, D]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, sources: Tensor, places_TK: Tensor) -> Tensor:
        ctx.save_for_backward(sources)
        return F.embedding_bag(places_TK, y, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (sources,) = ctx.saved_tensors
        return grads[0].index_select(0, sources), None, None


class MLP(nn.Module):
    """Computes y = W_down (silu(W_gate x) * W_up x), as the dense layers and the shared experts do."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Maps [T, D] to [T, D]."""
        return self.down_proj(F.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))


class Router(nn.Module):
    """Scores every expert for every token and picks K of them, by the rule that the config names.

    With V3's rule `e_score_correction_bias` balances the load; with V2's there is none.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.config, self.rule = config, RULES[config.scoring_func]
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        bias_E = torch.zeros(config.n_routed_experts) if self.rule.has_bias else None
        self.register_buffer("e_score_correction_bias", bias_E)

    def _apply(self, fn: Any, recurse: bool = True) -> Router:
        """Moves like any module, but keeps the bias in fp32: it grows in steps of 0.001, which bf16 swallows."""
        exact = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if exact is not None and moved is not None and moved.dtype != torch.float32:
            self.e_score_correction_bias = exact.to(moved.device)
        return self

    def forward(self, x_TD: Tensor) -> Routing:
        """Chooses K experts for each of the tokens [T, D]."""
        cfg = self.config
        scores_TE = router_scores(x_TD, self.weight, self.rule)
        experts_TK = choose_experts(
            scores_TE, self.e_score_correction_bias, cfg.n_group, cfg.topk_group, cfg.num_experts_per_tok, self.rule
        )
        weights_TK = gate_weights(scores_TE, experts_TK, cfg.norm_topk_prob, cfg.routed_scaling_factor)
        return Routing(scores_TE=scores_TE, experts_TK=experts_TK, weights_TK=weights_TK)

    def margins(self, x_TD: Tensor) -> Tensor:
        """Says how close each token's choice of experts is to another one, [T]; see `choice_margins`."""
        cfg, scores_TE = self.config, router_scores(x_TD, self.weight, self.rule)
        return choice_margins(
            scores_TE, self.e_score_correction_bias, cfg.n_group, cfg.topk_group, cfg.num_experts_per_tok, self.rule
        )


class Experts(nn.Module):
    """Holds the routed experts, stacked: gate and up [E, 2I, D], down [E, D, I]."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """Computes y_t = sum_k g_tk expert_k(x_t): [T, D] -> [T, D]."""
        # Sort the T K choices by expert. `sources` says which token stands at each place of that order, `places_TK`
        # where the K copies of a token went, and `ends_E` where the block of each expert ends.
        flat = experts_TK.flatten()
        order = flat.argsort(stable=True)
        sources = order // experts_TK.shape[1]
        places_TK = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        places_TK = places_TK.view_as(experts_TK)
        ends_E = torch.bincount(flat, minlength=len(self.down_proj)).cumsum(0).int()
        x = _Dispatch.apply(x_TD, sources, places_TK)
        h = F.grouped_mm(x, self.gate_up_proj.transpose(1, 2), offs=ends_E)
        # The gate scales the I inner numbers instead of the D outputs: the same product, fewer multiplications.
        h = _ScaledSwiGLU.apply(h, weights_TK.flatten()[order].unsqueeze(1).to(h.dtype))
        return _Combine.apply(F.grouped_mm(h, self.down_proj.transpose(1, 2), offs=ends_E), sources, places_TK)


class MoE(nn.Module):
    """Shows every token to the shared experts and to the routed experts that it chooses; the outputs add up."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Maps [T, D] to [T, D]."""
        routing = self.gate(x_TD)
        return self.experts(x_TD, routing.weights_TK, routing.experts_TK) + self.shared_experts(x_TD)
