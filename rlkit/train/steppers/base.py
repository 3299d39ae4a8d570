"""What every stepper does, and how all of them sort the parameters for their optimiser."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from rlkit.model.base import CausalLM
from rlkit.model.experts import Experts
from rlkit.train.policy import PolicyOutput
from rlkit.train.relay import RelayedPolicy

WEIGHT = "weight"
"""In the state of a parameter: the parameter itself, in fp32."""
STEP = "step"
"""In the state of a parameter: how many steps its moments have seen, a scalar."""


class Stepper(Protocol):
    """An optimiser over the policy's parameters, alone or as one of several data-parallel ranks.

    All ranks call the methods in the same order, with the same parameters.
    """

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

    def tensors(self) -> Mapping[str, Tensor]:
        """Returns the model's own tensors by name, as it computes with them; one that is in pieces when asked for."""
        ...

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Returns the fp32 weight of a parameter and its moments, whole, by name; before the first step no moments."""
        ...

    def restore(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` returned, bit for bit, in this layout or another one."""
        ...


class GroupKind(NamedTuple):
    """What the parameters of a group have in common; see `parameter_groups`."""

    moe: bool
    mtp: bool
    weight_decay: float
    muon: bool


class PipelineStep(Protocol):
    """What a pipeline asks of one optimiser step, pack by pack."""

    def forward(self, way: int, number: int, x_TD: Tensor | None) -> Tensor | PolicyOutput:
        """Runs this rank's layers on the way out (0) or back (1) of a pack; the first layers get no input."""
        ...

    def objective(self, number: int, output: PolicyOutput) -> Tensor:
        """Computes a pack's part of the loss, on the rank that has the head."""
        ...


class PipelineStepper(Stepper, Protocol):
    """A `Stepper` over one stage of a pipeline, whose gradients come from `accumulate` alone."""

    @property
    def module(self) -> RelayedPolicy:
        """What forward passes without gradient go through."""
        ...

    @property
    def least_packs(self) -> int:
        """How many packs a step must have, empty ones included."""
        ...

    @property
    def averaged_over(self) -> int:
        """By how much a gradient that is added here will be divided, before those of all ranks are summed."""
        ...

    def accumulate(self, step: PipelineStep, sizes: Sequence[int]) -> None:
        """Runs packs of so many tokens forward and backward through all stages and adds up their gradients."""
        ...


def parameter_groups(
    model: CausalLM, weight_decay: float, matrices: Collection[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Sorts what is trained into groups for an optimiser: MTP modules apart ("mtp"), and apart what is not decayed.

    Decay pulls matrices towards 0, where the layer before or after makes up for it. It has no business with gains of
    norms and with biases, whose natural size is not 0, nor with embeddings: most rows of a batch are not in use, and
    they would fade. So parameters of one dimension and embeddings, tied heads included, have a decay of 0.
    Experts that other ranks do not have are apart as well ("moe"): their gradients are summed over fewer ranks. And so
    are the `matrices` that Muon trains ("muon").
    """
    ahead = {id(parameter) for module in model.mtp_modules() for parameter in module.parameters()}
    spared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    spread = {id(parameter) for parameter in spread_parameters(model)}
    orthogonal = {id(parameter) for parameter in matrices}
    groups: dict[GroupKind, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and id(parameter) not in spared
            decay = weight_decay if decayed else 0.0
            kind = GroupKind(
                moe=id(parameter) in spread,
                mtp=id(parameter) in ahead,
                weight_decay=decay,
                muon=id(parameter) in orthogonal,
            )
            groups.setdefault(kind, []).append(parameter)
    return [{"params": groups[kind], **kind._asdict()} for kind in sorted(groups)]


def spread_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the stacked experts of this rank, where the ranks share them out; none where every rank has all."""
    stacks = [module for module in model.modules() if isinstance(module, Experts) and module.share.size > 1]
    return [parameter for stack in stacks for parameter in stack.parameters()]


def set_rates(groups: Sequence[dict[str, Any]], lr: float, mtp_lr: float) -> None:
    """Gives each of the `parameter_groups` its learning rate."""
    for group in groups:
        group["lr"] = mtp_lr if group["mtp"] else lr
