"""Keeping the experts evenly loaded: the load of an optimiser step, the loss that evens it, the step of the biases.

The load is that of the training passes over the whole global batch. Log-probs, the reference, traces and evaluations
are not training passes, and what backward computes again is not recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rlkit.algo.balance import expert_load, load_numbers, sequence_balance_loss, updated_bias
from rlkit.model.base import CausalLM
from rlkit.model.moe import Router
from rlkit.model.routing import Routing
from rlkit.model.trace import recorded_routing
from rlkit.train import ranks
from rlkit.types import Pack


class ExpertBalance:
    """The routers of one rank's model over one optimiser step: `begin`, then each pack, then `end`."""

    def __init__(self, model: CausalLM, *, bias_update_speed: float, balance_coef: float) -> None:
        """`bias_update_speed` is the paper's gamma, `balance_coef` its alpha (arXiv:2412.19437, section 2.1.2)."""
        self.routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
        depths = {router: k for k, module in enumerate(model.mtp_modules(), 1) for router in module.modules()}
        self._depths = {name: depths.get(router, 0) for name, router in self.routers.items()}
        self._everywhere, self._device = model.routers(), next(model.parameters()).device
        self.speed, self.coef = bias_update_speed, balance_coef
        self.begin()

    def begin(self) -> None:
        """Starts a step: nothing has been counted."""
        self._loads: dict[str, Tensor] = {
            name: torch.zeros(num_experts, dtype=torch.int64, device=self._device)
            for name, num_experts in self._everywhere.items()
        }
        self._loss = 0.0

    def recording(self) -> AbstractContextManager[Mapping[str, Routing]]:
        """Watches the training pass over one pack."""
        return recorded_routing(self.routers)

    def count(self, routings: Mapping[str, Routing], pack: Pack, num_samples: int) -> Tensor | float:
        """Adds a pack to the load; returns its part of the balance loss, which sums to that of the batch.

        L = alpha / num_samples x sum over sequences and layers of sum_e f_e P_e, with `num_samples` those of the whole
        global batch. MTP modules, which see the sequences without their ends, are not in it. A pack that trains nothing
        (see `rlkit.algo.packing.shard`) is not part of the batch: it counts 0.
        """
        loss: Tensor | float = 0.0
        if not bool((pack.weights_T != 0).any()):
            # With ZeRO-3 all ranks must run backward through the same outputs of modules, or wait for ever: those of a
            # pack that counts, whose balance loss is the number 0 where it has no weight, and a tensor elsewhere.
            layers = [r for name, r in routings.items() if self.coef and not self._depths[name]]
            return sum((0.0 * routing.scores_TE.sum() for routing in layers), loss)
        for name, routing in routings.items():
            depth = self._depths[name]
            if depth and max(pack.lengths) <= depth + 1:
                continue  # it predicts nothing here, and its one row is there for the graph alone (`rlkit.model.mtp`)
            self._loads[name] += expert_load(routing.experts_TK, len(self._loads[name]))
            if self.coef and not depth:
                terms = sequence_balance_loss(routing.scores_TE, routing.experts_TK.shape[1], pack.lengths)
                loss = loss + self.coef / num_samples * terms
        self._loss += loss.item() if isinstance(loss, Tensor) else loss
        return loss

    @torch.no_grad()
    def end(self, *, step: bool = True) -> dict[str, float]:
        """Adds the counts of all ranks, steps every bias once, and returns the numbers of the step; all ranks call it.

        The counts are whole numbers, so all ranks get the same biases. Without `step` the biases stay as they are.
        {} for a model without experts.
        """
        if not self._loads:
            return {}
        # Of layers that other ranks of a pipeline hold nothing was counted here.
        loads_LE = ranks.total(torch.stack(list(self._loads.values())))
        loads = dict(zip(self._loads, loads_LE, strict=True))
        numbers = load_numbers({_layer(name): row for name, row in zip(loads, loads_LE.cpu(), strict=True)})
        if self.coef:
            loss = torch.tensor(self._loss, dtype=torch.float64, device=loads_LE.device)
            numbers["balance_loss"] = float(ranks.total(loss))
        for name, router in self.routers.items():
            bias_E = router.e_score_correction_bias
            if step and self.speed and bias_E is not None:
                bias_E.copy_(updated_bias(bias_E, loads[name], self.speed))
        return numbers


def _layer(name: str) -> str:
    """ "model.layers.3.mlp.gate" -> "3"."""
    return next((part for part in name.split(".") if part.isdecimal()), name)
