"""DeepSpeed's DualPipeV under the trainer of a pipeline, with ZeRO-1 and experts that ranks share out.

It has the schedule and the memory of DualPipeV (https://github.com/deepseek-ai/DualPipe): two runs of layers per rank,
packs that go out and back, 1F1B in both directions. It does not compute while an all-to-all is under way, and does not
split backward into that of inputs and that of weights, which fill the bubbles of the original.

DeepSpeed sends tensors of one shape between ranks. So activations are padded on the way, and cut again before a layer
sees them; with them travels the number of their pack.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.pipe import DualPipeVModule
from deepspeed.runtime.pipe.schedule import OptimizerStep
from torch import Tensor, distributed, nn, tensor

from rlkit.config import TrainerConfig
from rlkit.model.deepseek import DeepseekV3
from rlkit.train.policy import PolicyOutput
from rlkit.train.relay import Pipeline, RelayedPolicy
from rlkit.train.steppers.base import GroupKind, PipelineStep, parameter_groups, set_rates
from rlkit.train.steppers.deepspeed import DeepSpeedStepper, initialize, settings
from rlkit.train.steppers.deepspeed_experts import mark_experts

__all__ = ["DualPipeVStepper"]


class DualPipeVStepper(DeepSpeedStepper):
    """A `PipelineStepper`; `join_ranks` and, with shared out experts, `join_experts` come first."""

    def __init__(self, model: DeepseekV3, cfg: TrainerConfig, pipeline: Pipeline) -> None:
        self.least_packs = 2 * cfg.pipeline
        # DeepSpeed divides by the packs that it expects: by a power of two, which rounds nothing.
        self._divisor = 1 << (self.least_packs - 1).bit_length()
        self._step: PipelineStep | None = None
        self._sizes: Sequence[int] = ()
        self._width = 0
        # A chunk is a function here, so that the parameters keep their names in the model that they are in.
        chunks = [partial(self._run_chunk, int(chunk >= cfg.pipeline)) for chunk in range(2 * cfg.pipeline)]
        with redirect_stdout(io.StringIO()):  # it prints all chunks
            module: Any = DualPipeVModule(
                chunks, num_stages=cfg.pipeline, loss_fn=self._loss, partition_method="uniform"
            )
        module.model = model
        groups, stand_ins = _same_groups(parameter_groups(model, cfg.weight_decay), next(model.parameters()))
        module.stand_ins = nn.ParameterList(stand_ins)
        spread = [parameter for group in groups if group["moe"] for parameter in group["params"]]
        # With bf16 a stage without any gradient of experts would not join the sum of their norm.
        self._never_silent = [*stand_ins, *spread[:1]]
        mark_experts(module, spread, cfg.expert_parallel, cfg.zero_stage)
        more = {"managed_gradient_accumulation": True, "gradient_accumulation_steps": self._divisor}
        more |= {"steps_per_print": None}
        self.model, self.stage = model, cfg.zero_stage
        self.averaged_over = distributed.get_world_size() // cfg.pipeline
        self.engine, self.zero = initialize(module, model, groups, cfg, settings(cfg) | more)
        # The trainer looks at the numbers of a step before it lets the weights move.
        self.engine._INSTRUCTION_MAP = {**self.engine._INSTRUCTION_MAP, OptimizerStep: lambda _engine: None}
        self.module = RelayedPolicy(model, pipeline)

    def accumulate(self, step: PipelineStep, sizes: Sequence[int]) -> None:
        """Runs packs of so many tokens forward and backward through all stages and adds up their gradients."""
        self._step, self._sizes = step, sizes
        for parameter in self._never_silent:
            parameter.grad = torch.zeros_like(parameter)
        if max(sizes) != self._width:
            self._width = max(sizes)
            self.engine.reset_activation_shape()
        self.engine.micro_batches = len(sizes)
        numbers = [tensor([number], device=self.engine.device) for number in range(len(sizes))]
        self.engine.train_batch(iter([((number,), number) for number in numbers]))
        self._step = None

    def backward(self, loss: Tensor) -> None:
        """Raises RuntimeError: gradients of a pipeline come from `accumulate`."""
        raise RuntimeError("a pipeline takes its gradients in `accumulate`")

    def step(self, lr: float, mtp_lr: float) -> float:
        """Clips, updates the weights, clears the gradients; returns the norm before clipping, that of all stages."""
        set_rates(self.zero.param_groups, lr, mtp_lr)
        self.engine._exec_optimizer_step()
        return float(self.engine.get_global_grad_norm())

    def _run_chunk(self, way: int, inputs: tuple[Tensor, ...]) -> Any:
        assert self._step is not None
        *x, number = inputs
        size = self._sizes[int(number)]
        output = self._step.forward(way, int(number), x[0][:size] if x else None)
        if isinstance(output, PolicyOutput):
            return output
        return F.pad(output, (0, 0, 0, self._width - size)), number

    def _loss(self, output: PolicyOutput, number: Tensor) -> Tensor:
        assert self._step is not None
        return self._step.objective(int(number), output) * (self.averaged_over * self._divisor)


def _same_groups(groups: Sequence[dict[str, Any]], like: Tensor) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """Gives every stage the groups of all stages, in one order, and returns what stands in for parameters not there.

    ZeRO adds up the norm over the stages group by group, and would wait for a stage that has fewer of them.
    """
    own = {GroupKind(**{name: group[name] for name in GroupKind._fields}): group["params"] for group in groups}
    everywhere: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everywhere, list(own))
    kinds = sorted({kind for there in everywhere for kind in there})
    stand_ins = {kind: nn.Parameter(torch.zeros_like(like.flatten()[:1])) for kind in kinds if kind not in own}
    same = [{"params": own[kind] if kind in own else [stand_ins[kind]], **kind._asdict()} for kind in kinds]
    return same, list(stand_ins.values())
