"""What every stepper does, and how all of them sort the parameters for their optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from rlkit.model.base import CausalLM
from rlkit.train.policy import PolicyOutput


class Stepper(Protocol):
    """An optimiser over the policy's parameters, alone or as one of several data-parallel ranks."""

    @property
    def module(self) -> Callable[..., PolicyOutput]:
        """What forward passes go through: a `Policy`, or DeepSpeed around one."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's part of the loss; parts of all ranks sum up."""
        ...

    def step(self, lr: float, mtp_lr: float) -> float:
        """Clips, updates the weights, clears the gradients; returns the norm before clipping, the same on every rank.

        A gradient whose norm is not finite is dropped: weights and moments stay as they are. `mtp_lr` is for the MTP
        modules; 0 leaves them as they are, whatever moments and weight decay say.
        """
        ...

    def forget(self) -> None:
        """Drops the optimiser's moments."""
        ...

    def save(self, folder: Path) -> None:
        """Writes weights and optimiser state."""
        ...

    def load(self, folder: Path) -> None:
        """Restores weights and optimiser state, bit for bit."""
        ...


def parameter_groups(model: CausalLM, weight_decay: float) -> list[dict[str, Any]]:
    """Sorts what is trained into groups for an optimiser: MTP modules apart ("mtp"), and apart what is not decayed.

    Decay pulls matrices towards 0, where the layer before or after makes up for it. It has no business with gains of
    norms and with biases, whose natural size is not 0, nor with embeddings: most rows of a batch are not in use, and
    they would fade. So parameters of one dimension and embeddings, tied heads included, have a decay of 0.
    """
    ahead = {id(parameter) for module in model.mtp_modules() for parameter in module.parameters()}
    spared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and id(parameter) not in spared
            kind = (id(parameter) in ahead, weight_decay if decayed else 0.0)
            groups.setdefault(kind, []).append(parameter)
    return [{"params": groups[kind], "mtp": kind[0], "weight_decay": kind[1]} for kind in sorted(groups)]


def set_rates(groups: Sequence[dict[str, Any]], lr: float, mtp_lr: float) -> None:
    """Gives each of the `parameter_groups` its learning rate."""
    for group in groups:
        group["lr"] = mtp_lr if group["mtp"] else lr
