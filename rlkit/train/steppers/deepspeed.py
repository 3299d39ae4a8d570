"""DeepSpeed ZeRO under the same trainer: one process per rank, gloo on CPUs and NCCL on GPUs.

Traps of DeepSpeed 0.19 that are handled here are noted in place. Its checkpoints are not used: they lack experts that
ranks share out, and can be read in the layout that wrote them only (`rlkit.train.checkpoint` has ours).
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch

# DeepSpeed looks for a GPU, not for a torch that can use it, and reads this while it is imported.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed.ops import __compatible_ops__
from deepspeed.runtime import bf16_optimizer, compiler
from torch import Tensor, distributed, nn

from rlkit.config import TrainerConfig
from rlkit.model.base import CausalLM
from rlkit.model.matrices import matrix_shapes
from rlkit.train.scorer import seen_by_trainer
from rlkit.train.steppers import deepspeed_state
from rlkit.train.steppers.base import parameter_groups, set_rates, spread_parameters
from rlkit.train.steppers.deepspeed_experts import forget_groups, join_experts, mark_experts, name_expert_groups
from rlkit.train.steppers.deepspeed_muon import new_muon, pieces_of

__all__ = ["DeepSpeedStepper", "join_experts", "join_ranks"]


def join_ranks(store: distributed.Store, rank: int, world_size: int) -> None:
    """Makes this process one of `world_size` ranks that meet in `store`; a second call in one process does nothing."""
    # Its shared-memory collectives are compiled on first use, which takes a C++ compiler and a minute.
    __compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # With bf16 and ZeRO-1 it collects garbage and prints the machine's memory a dozen times, and cannot be told not to.
    bf16_optimizer.see_memory_usage = lambda *_args, **_options: None
    # ZeRO imports DeepSpeed's Muon whatever the optimiser is, and to compile that loads all of torch's compiler: three
    # seconds of every start. Ours is another one (`deepspeed_muon`).
    compiler.compile = lambda: compiler.dummy_decorator
    # ZeRO calls what torch has renamed; nobody who runs a recipe can do anything about it.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=os.environ.get("LOCAL_RANK", "0"))
    if not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
        forget_groups()
    deepspeed.init_distributed(dist_init_required=False, verbose=False)


class DeepSpeedStepper:
    """A `Stepper` on ZeRO-1, 2 or 3; `join_ranks` comes first."""

    def __init__(self, model: CausalLM, cfg: TrainerConfig) -> None:
        self.model, self.stage, self.world_size = model, cfg.zero_stage, distributed.get_world_size()
        self.offloads = cfg.offload != "none"
        policy = seen_by_trainer(model)
        mark_experts(policy, spread_parameters(model), cfg.expert_parallel, cfg.zero_stage)
        shapes = matrix_shapes(model) if cfg.optimizer == "muon" else {}
        groups = parameter_groups(model, cfg.weight_decay, shapes)
        muon = new_muon(name_expert_groups(groups, cfg.expert_parallel), cfg) if cfg.optimizer == "muon" else None
        self.module, self.zero = initialize(policy, model, groups, cfg, settings(cfg), muon)
        if muon:
            muon.device = next(model.parameters()).device  # where DeepSpeed has put the model
            muon.pieces = pieces_of(self.zero, shapes)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's part of the loss; parts of all ranks sum up."""
        # DeepSpeed averages over the ranks, and the weights of a batch already sum to 1 over all of them.
        self.module.backward(loss * self.world_size)

    def step(self, lr: float, mtp_lr: float) -> float:
        """Clips, updates the weights, clears the gradients; returns the norm before clipping.

        A norm that is not finite comes back as infinity, on every rank, and leaves weights and moments as they are.
        """
        set_rates(self.zero.param_groups, lr, mtp_lr)
        self.module.step()
        norm = self.module.get_global_grad_norm()
        assert norm is not None
        if not math.isfinite(norm) and self.offloads and self.stage < 3:
            # DeepSpeed would add the next step's gradient to this one's.
            self.zero.averaged_gradients.update(dict.fromkeys(self.zero.averaged_gradients))
        return float(norm)

    def forget(self) -> None:
        """Drops the optimiser's moments."""
        self.zero.optimizer.state.clear()

    def tensors(self) -> Mapping[str, Tensor]:
        """Returns the model's own tensors by name; with ZeRO-3 all ranks ask for the same ones, in the same order."""
        return deepspeed_state.InPieces(self.model) if self.stage == 3 else self.model.state_dict()

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Returns the fp32 weight of a parameter and its moments, from the pieces of all ranks."""
        return deepspeed_state.gathered(self.zero, parameter)

    def restore(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        """Puts this rank's pieces of a parameter's weight and moments back, and with them its copy in the model."""
        deepspeed_state.scattered(self.zero, parameter, state)


def initialize(
    module: nn.Module,
    model: CausalLM,
    groups: list[dict[str, Any]],
    cfg: TrainerConfig,
    config: dict[str, Any],
    own: Any = None,
) -> tuple[Any, Any]:
    """Returns DeepSpeed's engine around a module that has the model in it, and ZeRO's wrapper of the optimiser.

    `groups` are the `parameter_groups` of the model; `own` is an optimiser of ours over them, in the place of AdamW.
    """
    biases = {name: value.clone() for name, value in model.named_buffers() if value.dtype == torch.float32}
    named: Any = name_expert_groups(groups, cfg.expert_parallel)
    engine, optimizer, _, _ = deepspeed.initialize(
        model=module,
        optimizer=own,
        model_parameters=None if own else named,  # which it declares as a module
        config=config,
    )
    # With bf16 DeepSpeed casts buffers too; the router's correction bias has to stay in fp32.
    for name, value in biases.items():
        model.get_buffer(name).data = value.to(model.get_buffer(name).device)
    return engine, optimizer


def settings(cfg: TrainerConfig) -> dict[str, Any]:
    """Returns DeepSpeed's configuration."""
    offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {"stage": cfg.zero_stage}
    if cfg.offload != "none":
        zero["offload_optimizer"] = offload
    if cfg.offload == "all":
        zero["offload_param"] = offload
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # The number of packs differs from step to step, so `step` is the boundary, not a counter.
        "managed_gradient_accumulation": False,
        "gradient_clipping": cfg.grad_clip,
        "zero_optimization": zero,
        # Its own AdamW for the CPU is compiled on first use, and a run that it resumes has other bits.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": cfg.dtype != "fp32"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    # torch_adam: its own AdamW would be compiled on first use, which takes minutes, and counts steps in a way that our
    # checkpoints do not know.
    adamw = {"type": "AdamW", "params": {"lr": 0.0, "betas": [0.9, cfg.beta2], "torch_adam": True}}
    return settings | ({"optimizer": adamw} if cfg.optimizer == "adamw" else {})
