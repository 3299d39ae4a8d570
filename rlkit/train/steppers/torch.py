"""torch.optim.AdamW on one rank: the trainer without DeepSpeed, and what DeepSpeed is tested against."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rlkit.config import TrainerConfig
from rlkit.model.base import CausalLM
from rlkit.train.policy import Policy, frozen_names, without
from rlkit.train.steppers.base import parameter_groups, set_rates

STATE_FILE = "torch_trainer.pt"


class TorchStepper:
    """A `Stepper` in one process."""

    def __init__(self, model: CausalLM, cfg: TrainerConfig) -> None:
        self.module = Policy(model.to("cuda" if torch.cuda.is_available() else "cpu"))
        self.grad_clip = cfg.grad_clip
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

    def save(self, folder: Path) -> None:
        """Writes weights and optimiser state."""
        state = {"module": without(frozen_names(self.module), self.module), "optimizer": self.optimizer.state_dict()}
        torch.save(state, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Restores weights and optimiser state, bit for bit."""
        state = torch.load(folder / STATE_FILE)
        self.module.load_state_dict(state["module"], strict=not frozen_names(self.module))
        self.optimizer.load_state_dict(state["optimizer"])
