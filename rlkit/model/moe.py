"""Feed-forward layers: the dense MLP and the mixture of shared and routed experts (arXiv:2412.19437, section 2.1.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlkit.model.config import DeepseekV3Config
from rlkit.model.experts import ALL, Experts, ExpertShare
from rlkit.model.routing import RULES, Routing, choice_margins, choose_experts, gate_weights, router_scores


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


class MoE(nn.Module):
    """Shows every token to the shared experts and to the routed experts that it chooses; the outputs add up."""

    def __init__(self, config: DeepseekV3Config, share: ExpertShare = ALL) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config, share)
        self.shared_experts = MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Maps [T, D] to [T, D]."""
        routing = self.gate(x_TD)
        return self.experts(x_TD, routing.weights_TK, routing.experts_TK) + self.shared_experts(x_TD)
