"""torch.optim.AdamW, or Muon, on one rank: the trainer without DeepSpeed, and what DeepSpeed is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.config import TrainerConfig
from rlkit.model.base import CausalLM
from rlkit.model.matrices import matrix_shapes
from rlkit.train.scorer import seen_by_trainer
from rlkit.train.steppers.base import WEIGHT, parameter_groups, set_rates
from rlkit.train.steppers.muon import MuonAdamW, Piece, one_behind_the_other


class TorchStepper:
    """A `Stepper` in one process."""

    def __init__(self, model: CausalLM, cfg: TrainerConfig) -> None:
        self.module: Any = seen_by_trainer(model.to("cuda" if torch.cuda.is_available() else "cpu"))
        self.grad_clip = cfg.grad_clip
        self.optimizer: torch.optim.Optimizer
        if cfg.optimizer == "muon":
            shapes = matrix_shapes(model)
            groups = parameter_groups(model, cfg.weight_decay, shapes)
            self.optimizer = MuonAdamW(groups, beta2=cfg.beta2, dtype=torch.float32)
            for matrix in shapes:
                places = one_behind_the_other([matrix], shapes)
                self.optimizer.pieces[matrix] = [Piece(matrices=places, size=matrix.numel())]
        else:
            groups = parameter_groups(model, cfg.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, cfg.beta2))

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of the loss."""
        loss.backward()

    def step(self, lr: float, mtp_lr: float) -> float:
        """Clips, updates the weights, clears the gradients; returns the norm before clipping.

        A norm that is not finite leaves weights and moments as they are.
        """
        set_rates(self.optimizer.param_groups, lr, mtp_lr)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.grad_clip)
        if norm.isfinite():
            self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def forget(self) -> None:
        """Drops the optimiser's moments."""
        self.optimizer.state.clear()

    def tensors(self) -> Mapping[str, Tensor]:
        """Returns the model's own tensors by name."""
        return self.module.model.state_dict()

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Returns the weight of a parameter and its moments, as they lie in memory."""
        return {WEIGHT: parameter.detach(), **self.optimizer.state.get(parameter, {})}

    def restore(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` returned."""
        with torch.no_grad():
            parameter.copy_(state[WEIGHT])
        moments = {name: tensor.to(parameter.device) for name, tensor in state.items() if name != WEIGHT}
        if moments:
            self.optimizer.state[parameter] = moments
