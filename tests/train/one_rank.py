"""One rank of `test_ranks.py`: takes a DeepSpeed step on its share of a batch and writes what came of it.

The gradient that was reduced, the load of the experts, and the router's biases of every rank.

python -m tests.train.one_rank STORE RANK WORLD_SIZE ZERO_STAGE EMPTY OUT
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from deepspeed.utils import safe_get_full_optimizer_state
from torch import distributed

from rlkit.algo import GrpoLoss, shard
from rlkit.model import DeepseekV3
from rlkit.train.deepspeed import DeepSpeedStepper, join_ranks
from rlkit.train.trainer import ModelTrainer
from tests.train.test_trainer import CFG, make_model, rollouts


def bias_of(model: DeepseekV3) -> torch.Tensor:
    return torch.stack([buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")])


def main(store: str, rank: int, world_size: int, zero_stage: int, few: bool, out: str) -> None:
    torch.set_num_threads(1)
    join_ranks(distributed.FileStore(store, world_size), rank, world_size)
    model = make_model()
    cfg = replace(CFG, kind="deepspeed", num_ranks=world_size, zero_stage=zero_stage, grad_clip=1e9, weight_decay=0.0)
    trainer = ModelTrainer(
        model, DeepSpeedStepper(model, cfg), keep_reference=True, bias_update_speed=0.01, balance_coef=0.1
    )
    [batch] = rollouts(max_tokens=40)
    if few:  # fewer samples than ranks: one rank has nothing to do but must not be waited for
        first = batch.packs[0]
        size = first.lengths[0]
        names = ("tokens_T", "weights_T", "advantages_T", "old_logprobs_T", "ref_logprobs_T")
        only = replace(first, lengths=(size,), **{name: getattr(first, name)[:size] for name in names})
        batch = replace(batch, packs=(only,), num_samples=1)
    share = trainer.with_reference(shard(batch, world_size)[rank])
    stats = trainer.update(share, GrpoLoss(kl_coef=0.05), 1e-3)
    # After one step of Adam the first moment is (1 - beta1) times the gradient of the whole batch.
    moments = {
        name: safe_get_full_optimizer_state(parameter, "exp_avg").clone()
        for name, parameter in model.named_parameters()
    }
    bias = bias_of(model)
    biases = [torch.empty_like(bias) for _ in range(world_size)]
    distributed.all_gather(biases, bias)
    if rank == 0:
        seen = {"grad_norm": stats.grad_norm, "loss": stats.loss, "load": dict(stats.load)}
        seen |= {"biases": biases, "before": bias_of(make_model())}
        torch.save({"moments": moments, **seen}, out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    store, rank, world_size, zero_stage, few, out = sys.argv[1:]
    main(store, int(rank), int(world_size), int(zero_stage), few == "few", out)
