"""DeepSpeed ZeRO under the same trainer: one process per rank, gloo on CPUs and NCCL on GPUs.

What is not covered: ZeRO-3 and expert parallelism. Traps of DeepSpeed 0.19 that are handled here are noted in place.
"""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

# DeepSpeed looks for a GPU, not for a torch that can use it, and reads this while it is imported.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed.ops import __compatible_ops__
from deepspeed.runtime import bf16_optimizer
from torch import Tensor, distributed

from rlkit.config import TrainerConfig
from rlkit.errors import UserError
from rlkit.model.base import CausalLM
from rlkit.train.policy import Policy, frozen_names
from rlkit.train.steppers.base import parameter_groups, set_rates

TAG = "deepspeed"


def join_ranks(store: distributed.Store, rank: int, world_size: int) -> None:
    """Makes this process one of `world_size` ranks that meet in `store`; a second call in one process does nothing."""
    # Its shared-memory collectives are compiled on first use, which takes a C++ compiler and a minute.
    __compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # With bf16 and ZeRO-1 it collects garbage and prints the machine's memory a dozen times, and cannot be told not to.
    bf16_optimizer.see_memory_usage = lambda *_args, **_options: None
    # ZeRO calls what torch has renamed; nobody who runs a recipe can do anything about it.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=os.environ.get("LOCAL_RANK", "0"))
    if not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)


class DeepSpeedStepper:
    """A `Stepper` on ZeRO-1 or 2; `join_ranks` comes first."""

    def __init__(self, model: CausalLM, cfg: TrainerConfig) -> None:
        biases = {name: value.clone() for name, value in model.named_buffers() if value.dtype == torch.float32}
        groups: Any = parameter_groups(model, cfg.weight_decay)  # which it declares as a module
        self.module, optimizer, _, _ = deepspeed.initialize(
            model=Policy(model), model_parameters=groups, config=_settings(cfg)
        )
        self.zero: Any = optimizer  # ZeRO's wrapper; DeepSpeed declares it as any of twelve optimisers
        # With bf16 DeepSpeed casts buffers too; the router's correction bias has to stay in fp32.
        for name, value in biases.items():
            model.get_buffer(name).data = value.to(model.get_buffer(name).device)
        self.world_size = distributed.get_world_size()

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
        return float(norm)

    def forget(self) -> None:
        """Drops the optimiser's moments."""
        self.zero.optimizer.state.clear()

    def save(self, folder: Path) -> None:
        """Writes weights and optimiser state; all ranks call it."""
        self.module.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Restores weights and optimiser state, bit for bit; all ranks call it, with the number of ranks that saved."""
        strict = not frozen_names(self.module)
        with redirect_stdout(StringIO()):  # it prints a line that was left in for debugging
            loaded, _ = self.module.load_checkpoint(str(folder), tag=TAG, load_module_strict=strict)
        if loaded is None:
            raise UserError(f"{folder} is not a DeepSpeed checkpoint; remove it or set resume=never")


def _settings(cfg: TrainerConfig) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # The number of packs differs from step to step, so `step` is the boundary, not a counter.
        "managed_gradient_accumulation": False,
        "gradient_clipping": cfg.grad_clip,
        "zero_optimization": {"stage": cfg.zero_stage},
        "bf16": {"enabled": cfg.dtype == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "optimizer": {
            "type": "AdamW",
            # torch_adam: the fused AdamW would be compiled on first use, which takes minutes on a CPU.
            "params": {
                "lr": 0.0,
                "betas": [0.9, cfg.beta2],
                "torch_adam": not torch.cuda.is_available(),
            },
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
