"""Makes DeepSpeed 0.19 see that ranks share out our experts, which are modules that it does not know.

DeepSpeed keeps apart the gradients of experts only if a module of its own class is in the model, and only for
parameters with certain marks. So the parameters get the marks, and an empty module of its class the model. Without the
module ZeRO-1 and 2 fail, and ZeRO-3 silently gives every rank the experts of rank 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.utils import groups
from torch import nn

from rlkit.model.dispatch import AllToAll
from rlkit.model.experts import Experts


class _ExpertsAreSpread(AutoEPMoELayer):
    """A module of DeepSpeed's class for experts without any; it is never run."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.num_experts = 0

    def set_deepspeed_parallelism(self, *_args: Any, **_options: Any) -> None:
        """Does nothing: there is nothing here to spread."""


def forget_groups() -> None:
    """Drops the groups that DeepSpeed remembers of a process group that has ended: vLLM ends the one that it shared."""
    groups._WORLD_GROUP = groups.mpu = None
    for known in (groups._EXPERT_PARALLEL_GROUP, groups._EXPERT_DATA_PARALLEL_GROUP):
        known.clear()


def join_experts(model: nn.Module, ranks: int, num_stages: int = 1, *, in_float8: bool = False) -> None:
    """Lets the experts of ranks 0 .. ranks - 1, of the next so many, and so on, reach each other's tokens.

    Of a pipeline the first ranks are those of its first stage; copies of experts are looked for within a stage.
    With `in_float8` rows on their way to experts are in FP8.
    """
    if ranks == 1:
        return
    groups._create_expert_and_data_parallel(ranks, pp_size=num_stages)
    for module in model.modules():
        if isinstance(module, Experts):
            module.dispatcher = AllToAll(groups._get_expert_parallel_group(_group_name(ranks)), in_float8=in_float8)


def mark_experts(policy: nn.Module, spread: Sequence[nn.Parameter], ranks: int, zero_stage: int) -> None:
    """Marks the parameters of experts that the ranks share out, and the policy that has them."""
    for parameter in spread:
        marks: Any = parameter
        marks.allreduce, marks.group_name = False, _group_name(ranks)
        marks.ds_zero_placement_family, marks.ds_zero_partition_group_name = "autoep_expert", _group_name(ranks)
    # Frozen experts (below LoRA) have no gradient to keep apart, and ZeRO-1 and 2 refuse the module then.
    if spread and (zero_stage == 3 or any(parameter.requires_grad for parameter in spread)):
        policy.experts_are_spread = _ExpertsAreSpread()


def name_expert_groups(parameter_groups: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    """Gives parameter groups the names by which DeepSpeed finds the ranks that hold the same experts."""
    return [group | ({"name": _group_name(ranks)} if group["moe"] else {}) for group in parameter_groups]


def _group_name(ranks: int) -> str:
    return f"ep_size_{ranks}"
